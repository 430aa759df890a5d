"""Too little memory, which may pass, told from torch's other errors; torch has one type for nearly all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise `MemoryError` where torch found no memory on the device or in the machine."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise MemoryError(str(error).splitlines()[0][:200]) from error
        raise
