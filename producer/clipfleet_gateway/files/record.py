"""What is kept of a file beside its content. Frozen data, no I/O."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from clipfleet.contract.label_sets import FrozenModel

FILE_VERSION = 1
_FILE_ID = re.compile(r"file-([0-9a-f]{12})([0-9a-f])[0-9a-f]{19}")
_RANDOM_BITS = 76


class Purpose(StrEnum):
    """What a file is for, in OpenAI's words."""

    BATCH = "batch"  # the requests of a batch, one JSON object per line
    USER_DATA = "user_data"  # an image
    VISION = "vision"  # the same
    BATCH_OUTPUT = "batch_output"  # what a batch has written; nobody uploads one


# In ids: a list of one purpose reads no records of the others.
_DIGITS: Mapping[str, str] = {
    Purpose.BATCH: "0", Purpose.USER_DATA: "1", Purpose.VISION: "2", Purpose.BATCH_OUTPUT: "3",
}  # fmt: skip


class FileRecord(FrozenModel):
    """All that is known of a file but its owner, who is in its name. It never changes."""

    schema_version: int = FILE_VERSION
    id: Annotated[str, Field(pattern=f"^{_FILE_ID.pattern}$")]
    bytes: Annotated[int, Field(ge=0)]
    created_at: int  # in seconds since 1970, like all times of files
    expires_at: int | None = None  # None: it is kept until it is deleted
    filename: str  # as the client has sent it: it names nothing here
    purpose: Purpose
    sha256: str  # of the content

    def has_expired(self, now: datetime) -> bool:
        """Whether it answers like a file that was deleted."""
        return self.expires_at is not None and self.expires_at <= now.timestamp()


def new_file_id(now: datetime, purpose: Purpose) -> str:
    """A new id; later ones sort after earlier ones, to a millisecond."""
    milliseconds = int(now.timestamp() * 1000)
    return f"file-{milliseconds:012x}{_DIGITS[purpose]}{secrets.randbits(_RANDOM_BITS):019x}"


def is_file_id(text: str) -> bool:
    """Whether a text could be the id of a file, which then is safe as a part of a name."""
    return _FILE_ID.fullmatch(text) is not None


def made_ms(file_id: str) -> int:
    """When an id was made, in milliseconds since 1970."""
    found = _FILE_ID.fullmatch(file_id)
    return int(found[1], 16) if found else 0


def is_for(file_id: str, purpose: str) -> bool:
    """Whether an id is that of a file with this purpose, which may be none of ours."""
    found = _FILE_ID.fullmatch(file_id)
    return found is not None and found[2] == _DIGITS.get(purpose)
