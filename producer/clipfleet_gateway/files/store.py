"""Files as objects of the gateway's place: `files/OWNER/FILE_ID.json` and `.bytes`.

The record is written after the content and removed before it, so a file that is found has its content.
`expiring/SECONDS.OWNER.FILE_ID` lists what expires in the order of time: nobody has to read all records.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

import pyarrow as pa
from pydantic import ValidationError

from clipfleet.errors import OutputDamagedError
from clipfleet.outputs import Output
from clipfleet.outputs.scratch import output_errors
from clipfleet_gateway.errors import not_found
from clipfleet_gateway.files.record import FileRecord, Purpose, is_file_id, is_for, made_ms, new_file_id
from clipfleet_gateway.keys.ring import now_in_utc

_EXPIRING = "expiring/"
_READERS, _READ_AT_ONCE = 8, 128  # records of a list: each is a request to a bucket
_STRAY_AFTER = timedelta(hours=24)  # content without a record: its upload was killed

Order = Literal["asc", "desc"]


class Received:
    """A content that arrives piece by piece, in a scratch file of the place. Thread-safe; close it."""

    def __init__(self, place: Output) -> None:
        self._opened = ExitStack()
        self.path = self._opened.enter_context(place.scratch())
        with output_errors(self.path):
            self._file = self._opened.enter_context(self.path.open("wb", buffering=0))
        self._hash = hashlib.sha256()
        self._writing = threading.Lock()  # a request that is cancelled closes while a thread may write
        self._is_closed = False
        self.bytes = 0

    def write(self, data: bytes) -> None:
        """Append a piece."""
        with self._writing, output_errors(self.path):
            if self._is_closed:
                return
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            self._hash.update(data)
            self.bytes += len(data)

    @property
    def sha256(self) -> str:
        """Of all pieces so far."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Remove the scratch file. Idempotent; what was published stays."""
        with self._writing:
            self._is_closed = True
            self._opened.close()


class FileStore:
    """Keeps, finds and removes files.

    Every method raises `OutputUnavailableError` if the place cannot be read or written. An owner is the name
    of a key; ids that are none are those of no file.
    """

    def __init__(self, place: Output, *, now: Callable[[], datetime] = now_in_utc) -> None:
        self._place = place
        self._now = now

    def receive(self) -> Received:
        """Begin a content."""
        return Received(self._place)

    def save(
        self,
        owner: str,
        received: Received,
        *,
        filename: str,
        purpose: Purpose,
        expires_after_seconds: int | None = None,
    ) -> FileRecord:
        """Keep what was received as a new file."""
        record = self.described(
            received, filename=filename, purpose=purpose, expires_after_seconds=expires_after_seconds
        )
        self.put_content(owner, record.id, received)
        self.put_record(owner, record)
        return record

    def described(
        self,
        received: Received,
        *,
        filename: str,
        purpose: Purpose,
        expires_after_seconds: int | None = None,
    ) -> FileRecord:
        """The record of a new file, which is not kept yet."""
        now = self._now()
        created_at = int(now.timestamp())
        return FileRecord(
            id=new_file_id(now, purpose),
            bytes=received.bytes,
            created_at=created_at,
            expires_at=None if expires_after_seconds is None else created_at + expires_after_seconds,
            filename=filename,
            purpose=purpose,
            sha256=received.sha256,
        )

    def put_content(self, owner: str, file_id: str, received: Received) -> None:
        """Keep a content, which nobody finds without its record."""
        self._place.publish(received.path, _content(owner, file_id))

    def put_record(self, owner: str, record: FileRecord) -> None:
        """Let a content be found. Idempotent."""
        if record.expires_at is not None:
            self._place.create(f"{_EXPIRING}{record.expires_at:012d}.{owner}.{record.id}", b"-")
        self._place.create(_record(owner, record.id), record.model_dump_json(indent=1).encode())

    def find(self, owner: str, file_id: str) -> FileRecord | None:
        """The file of this owner; None if there is none, or if it has expired."""
        data = self._place.read(_record(owner, file_id)) if is_file_id(file_id) else None
        if data is None:
            return None
        try:
            record = FileRecord.model_validate_json(data)
        except ValidationError:
            where = f"{self._place.uri}/{_record(owner, file_id)}"
            raise OutputDamagedError(f"{where} is damaged: remove it, and upload the file again") from None
        return None if record.has_expired(self._now()) else record

    def require(self, owner: str, file_id: str, param: str | None = None) -> FileRecord:
        """The same; raises `ApiError` (404) instead of returning None, with what of the request names it."""
        record = self.find(owner, file_id)
        if record is None:
            raise not_found("file", file_id, param)
        return record

    def content(self, owner: str, file_id: str) -> pa.NativeFile:
        """Open the content of a file, for a caller that closes it. Raises `FileNotFoundError`."""
        if not is_file_id(file_id):
            raise FileNotFoundError(file_id)
        return self._place.open(_content(owner, file_id))

    def read(self, owner: str, file_id: str) -> bytes | None:
        """All of a content, of an image; None if the file is gone."""
        return self._place.read(_content(owner, file_id)) if is_file_id(file_id) else None

    def listed(
        self, owner: str, *, after: str | None, limit: int, order: Order, purpose: str | None
    ) -> tuple[Sequence[FileRecord], bool]:
        """Some files by age, and whether there are more.

        Args:
            owner: whose files.
            after: id that the files come after, of a file that may be gone.
            limit: how many at most.
            order: `desc` begins with the newest one.
            purpose: only files of this purpose; None: all.
        """
        is_desc = order == "desc"
        named = (one for one in self._ids(owner, ".json") if purpose is None or is_for(one, purpose))
        ids = sorted(named, reverse=is_desc)
        if after is not None:
            ids = [one for one in ids if (one < after if is_desc else one > after)]
        found: list[FileRecord] = []
        with ThreadPoolExecutor(_READERS) as readers:
            at_once = min(max(limit + 1, _READERS), _READ_AT_ONCE)
            for start in range(0, len(ids), at_once):
                records = readers.map(partial(self.find, owner), ids[start : start + at_once])
                found += [one for one in records if one is not None]  # the others have expired just now
                if len(found) > limit:
                    break
        return found[:limit], len(found) > limit

    def delete(self, owner: str, file_id: str) -> bool:
        """Remove a file; False if there is none."""
        if self.find(owner, file_id) is None:
            return False
        self.discard(owner, file_id)
        return True

    def remove_expired(self) -> None:
        """Remove the files of all owners whose time is over. Idempotent."""
        now = int(self._now().timestamp())
        for name in self._place.names(_EXPIRING):
            seconds, _, rest = name.removeprefix(_EXPIRING).partition(".")
            owner, _, file_id = rest.partition(".")
            if not (seconds.isdecimal() and is_file_id(file_id)):
                continue  # other programs left it here
            if int(seconds) > now:
                return
            self.discard(owner, file_id)
            self._place.remove(name)

    def remove_strays(self, owner: str, coming: Container[str]) -> None:
        """Remove contents of an owner whose upload was killed a day ago or earlier. Idempotent.

        Args:
            owner: of the contents.
            coming: ids of files whose records are still to be put, listed before this call.
        """
        known, before = set(self._ids(owner, ".json")), self._now() - _STRAY_AFTER
        for file_id in self._ids(owner, ".bytes"):
            if (
                file_id not in known
                and file_id not in coming
                and made_ms(file_id) < before.timestamp() * 1000
            ):
                self._place.remove(_content(owner, file_id))

    def discard(self, owner: str, file_id: str) -> None:
        """Remove what there is of a file. Idempotent."""
        self._place.remove(_record(owner, file_id))
        self._place.remove(_content(owner, file_id))

    def _ids(self, owner: str, suffix: str) -> Iterator[str]:
        folder = f"files/{owner}/"
        names = (name.removeprefix(folder) for name in self._place.names(folder))
        ids = (name.removesuffix(suffix) for name in names if name.endswith(suffix))
        return (file_id for file_id in ids if is_file_id(file_id))


def _record(owner: str, file_id: str) -> str:
    return f"files/{owner}/{file_id}.json"


def _content(owner: str, file_id: str) -> str:
    return f"files/{owner}/{file_id}.bytes"
