"""S3 objects as seekable files, in few requests and bounded memory."""

from __future__ import annotations

import io
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clipfleet.errors import ClipfleetError, OutputUnavailableError, OutputUnreachableError
from clipfleet.s3.client import S3Client
from clipfleet.s3.failures import S3Failure, S3Problem, explain, s3_errors

_TAIL_BYTES = 1 << 16  # covers the footer of a part, or a whole small object
_BLOCK_BYTES = 1 << 20
_KEPT_BLOCKS = 2
_READ_ATTEMPTS = 3  # per range: boto3 does not retry a response that breaks off in its body


class S3File(io.RawIOBase):
    """A binary file, read-only and seekable. Not thread-safe.

    The first request fetches the size and the tail of the object. Later ones fetch blocks of 1 MiB, of which
    two are cached, or exactly the range of a larger read. Reading fails if the object is replaced in the
    meantime: bytes of two versions are never mixed.
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        key: str,
        *,
        away: type[ClipfleetError] = OutputUnavailableError,
        lasting: type[ClipfleetError] = OutputUnreachableError,
    ) -> None:
        """Open an object. This and later reads raise `away` if waiting may help, else `lasting`.

        Raises:
            FileNotFoundError: no such object.
        """
        super().__init__()
        self._client = client
        self._bucket = bucket
        self._key = key
        self._away = away
        self._lasting = lasting
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()  # by number, least recently used first
        self.etag = ""  # version of the object, quoted
        with self._errors():
            self._size, self._tail = self._open()

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def size(self) -> int:
        """Return the size in bytes."""
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Read like `io.RawIOBase`, but short only at the end."""
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        with self._errors():
            data = self._bytes(self._position, self._position + wanted)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Read to the end."""
        return self.read()

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # typeshed: any buffer
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _open(self) -> tuple[int, bytes]:
        """Fetch the size and the tail of the object."""
        from botocore.exceptions import ClientError

        where = {"Bucket": self._bucket, "Key": self._key}
        try:
            answer, tail = self._get(Range=f"bytes=-{_TAIL_BYTES}")
            found = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.get("ContentRange", ""))
            self.etag = answer["ETag"]
            return int(found[1]) if found else len(tail), tail
        except ClientError as error:
            if explain(error).problem is S3Problem.NO_OBJECT:
                raise FileNotFoundError(f"s3://{self._bucket}/{self._key}") from error
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 416:
                raise
        self.etag = self._client.head_object(**where)["ETag"]  # an empty object has no range
        return 0, b""

    def _bytes(self, start: int, end: int) -> bytes:
        tail_start = self._size - len(self._tail)
        if start >= tail_start:
            return self._tail[start - tail_start : end - tail_start]
        if end - start > _BLOCK_BYTES:
            return self._fetch(start, end)
        numbers = range(start // _BLOCK_BYTES, -(-end // _BLOCK_BYTES))
        data = b"".join(self._block(number) for number in numbers)
        skipped = numbers.start * _BLOCK_BYTES if numbers else start
        return data[start - skipped : end - skipped]

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        start = number * _BLOCK_BYTES
        data = self._fetch(start, min(start + _BLOCK_BYTES, self._size))
        self._blocks[number] = data
        while len(self._blocks) > _KEPT_BLOCKS:
            self._blocks.popitem(last=False)
        return data

    def _fetch(self, start: int, end: int) -> bytes:
        return self._get(Range=f"bytes={start}-{end - 1}", IfMatch=self.etag)[1]

    def _get(self, **wanted: str) -> tuple[dict[str, Any], bytes]:
        """Get a response and its body, with retries if the body breaks off."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        for attempt in range(1, _READ_ATTEMPTS + 1):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key, **wanted)
            try:
                return answer, answer["Body"].read()
            except (HTTPClientError, IncompleteReadError):
                if attempt == _READ_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from botocore.exceptions import ClientError

        where = f"s3://{self._bucket}/{self._key}"
        with s3_errors(where, away=self._away, lasting=self._lasting):
            try:
                yield
            except ClientError as error:
                failure: S3Failure = explain(error)
                replaced = error.response["ResponseMetadata"]["HTTPStatusCode"] == 412
                if self.etag and (replaced or failure.problem is S3Problem.NO_OBJECT):
                    raise self._away(f"{where}: was replaced or removed while it was read") from error
                raise
