"""The messages between a worker and its decode child, and their layout in bytes.

A message is a length (4 bytes, big-endian), so many bytes of JSON, and a payload. The child parses untrusted
files and is not trusted: its JSON is validated, and the length of the payload is computed from it, within the
worker's own limits. No pickle.
"""

from __future__ import annotations

import math
import struct
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from clipfleet.contract.jobs import DecodeRoute, ErrorCode, Exif
from clipfleet_worker.pixel_spec import InputSize

MAX_JSON_BYTES = 8192
STRIP_BYTES = 1 << 22  # an image is sent in strips of whole rows, about so large

EXIT_OUT_OF_MEMORY = 86  # exit code of a child to which a file needs more memory than it may have

_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size

# Bytes of a pixel in a strip; "1" is packed, each row to whole bytes.
_PIXEL_BYTES = {
    "1": 1, "L": 1, "LA": 2, "P": 1, "PA": 2, "RGB": 3, "RGBA": 4, "RGBX": 4, "CMYK": 4, "YCbCr": 3, "LAB": 3,
    "I": 4, "F": 4, "I;16": 2, "I;16B": 2, "I;16L": 2,
}  # fmt: skip


def _known(mode: str) -> str:
    if mode not in _PIXEL_BYTES:
        raise ValueError(f"unknown mode {mode!r}")
    return mode


_Side = Annotated[int, Field(ge=1)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Request(_Message):
    """Asks for one file to be read; its bytes follow."""

    file_bytes: int
    route: DecodeRoute
    exif: Exif
    input_size: InputSize
    cpu_seconds: float  # after these the kernel ends the child


class Ready(_Message):
    """The child's first message: its imports are done, its limits are set."""

    kind: Literal["ready"] = "ready"


class Failed(_Message):
    """The file cannot be read."""

    kind: Literal["failed"] = "failed"
    code: ErrorCode
    detail: str


class JpegRead(_Message):
    """A `ScaledJpeg`; its pixels follow."""

    kind: Literal["jpeg"] = "jpeg"
    width: _Side
    height: _Side
    eighths: Literal[1, 2, 4, 8]
    channels: Literal[1, 3]
    orientation: Literal[1, 2, 3, 4, 5, 6, 7, 8] = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, columns, channels) of the pixels, uint8."""
        rows, columns = (math.ceil(side * self.eighths / 8) for side in (self.height, self.width))
        return rows, columns, self.channels


class ImageRead(_Message):
    """A `WholeImage`; its rows follow from the top, in strips of `rows_per_strip`."""

    kind: Literal["image"] = "image"
    width: _Side
    height: _Side
    mode: Annotated[str, AfterValidator(_known)]
    image_format: Annotated[str, Field(max_length=10)]
    palette_mode: Literal["RGB", "RGBA"] | None = None
    palette_hex: Annotated[str, Field(max_length=2048, pattern=r"^([0-9a-f]{2})*$")] = ""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return -(-self.width // 8) if self.mode == "1" else self.width * _PIXEL_BYTES[self.mode]

    @property
    def rows_per_strip(self) -> int:
        """Rows in a strip; the last one may have fewer."""
        return max(1, STRIP_BYTES // self.row_bytes)


Reply = Ready | Failed | JpegRead | ImageRead
_REPLIES: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="kind")])


def packed(message: Request | Reply) -> bytes:
    """Length and JSON of a message, without its payload."""
    text = message.model_dump_json().encode()
    return _LENGTH.pack(len(text)) + text


def json_length(prefix: bytes) -> int:
    """Bytes of JSON that follow.

    Raises:
        ValueError: more than any message has.
    """
    length: int = _LENGTH.unpack(prefix)[0]
    if not 0 < length <= MAX_JSON_BYTES:
        raise ValueError(f"{length} bytes of JSON")
    return length


def read_reply(text: bytes) -> Reply:
    """Parse a child's answer.

    Raises:
        ValueError: it is none of the replies.
    """
    return _REPLIES.validate_json(text)
