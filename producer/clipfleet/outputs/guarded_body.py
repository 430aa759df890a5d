"""The body of an upload, which a lost lease can still stop before its last bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from clipfleet.outputs.folder import Confirm

_LAST_BYTES = 4096
_CONFIRM_BYTES = 1 << 20


class GuardedBody:
    """A file-like body that calls `confirm` before its last bytes, in every attempt to send it.

    A request takes time (connecting, the answer `100 Continue`, the bytes before), and a store creates no
    object from a request that breaks off. So the lease is checked immediately before the last bytes.
    """

    def __init__(self, file: BinaryIO, confirm: Confirm) -> None:
        self._file = file
        self._confirm = confirm
        self._size = file.seek(0, io.SEEK_END)
        self._refusal: BaseException | None = None

    def read(self, amount: int | None = -1) -> bytes:
        """Read like a file, but never the last bytes together with those before."""
        position = self._file.tell()
        most = self._size - position - _LAST_BYTES
        if most > 0 and amount is not None and amount >= 0:
            data = self._file.read(min(amount, most))
            if position // _CONFIRM_BYTES == (position + len(data)) // _CONFIRM_BYTES:
                return data
        else:
            data = self._file.read(-1 if amount is None else amount)
        try:
            self._confirm()  # in between too: a slow upload is no hang, and a lost lease ends it
        except BaseException as error:
            self._refusal = error
            raise
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, usually to the start for another attempt."""
        self._refusal = None
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._file.tell()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Raise what `confirm` raised; botocore turns it into a connection failure."""
        try:
            yield
        except Exception:
            if self._refusal is not None:
                raise self._refusal from None
            raise
