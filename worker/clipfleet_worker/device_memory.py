"""The device's memory: how much of it is taken, and too little of it told from torch's other errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# In the words of torch's exceptions: of the processor's allocator, of CUDA, of cuBLAS and cuDNN.
_NO_MEMORY = ("allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise `MemoryError` where torch found no memory on the device or in the machine."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or lacks_memory(str(error)):
            raise MemoryError(str(error).splitlines()[0][:200]) from error
        raise


def lacks_memory(words: str) -> bool:
    """Whether an exception that says this is one of too little memory."""
    return any(part in words for part in _NO_MEMORY)


def device_bytes(device: str) -> Mapping[str, int]:
    """Memory of a GPU by kind, see `clipfleet_device_memory_bytes`; none before its use, or on the CPU."""
    import torch

    # Asked before its first use, a GPU would be taken by the question.
    if not device.startswith("cuda") or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "free": free,
        "total": total,
    }
