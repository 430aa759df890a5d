"""The device of a worker: which one, its precision, and its memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from clipfleet.contract.jobs import Precision
from clipfleet.errors import UsageError
from clipfleet_worker.failures import ModelUnavailableError

# Without a driver of NVIDIA (also on Jetsons and WSL) or AMD there is no GPU for torch.
_NVIDIA_DRIVER = Path("/dev/nvidiactl")
_GPU_DRIVERS = (_NVIDIA_DRIVER, Path("/dev/nvmap"), Path("/dev/dxg"), Path("/dev/kfd"))
_HIDES_ALL_GPUS = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES, the last one is Slurm's

HOW_TO_USE_THE_GPU = (
    "install a build of torch for its driver (`nvidia-smi` shows the version), or set CLIPFLEET_DEVICE=cpu"
)

# Messages of CUDA's runtime, its driver, and the libraries above them.
_LOST = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]", "_STATUS_EXECUTION_FAILED")

# Messages of torch's exceptions: from the CPU allocator, CUDA, cuBLAS and cuDNN.
_NO_MEMORY = ("allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")

_CPU_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def pick_device(setting: str) -> str:
    """Resolve `auto` to `cuda` if torch sees a GPU, else to `cpu`.

    Raises:
        UsageError: torch does not see the GPU of the setting, or sees none on a machine that has one.
    """
    if setting == "cpu" or (setting == "auto" and not any(path.exists() for path in _GPU_DRIVERS)):
        return "cpu"  # importing torch to ask it would take a second
    import torch

    if setting == "auto":
        if torch.cuda.is_available():
            return "cuda"
        if has_nvidia_gpu():  # a job must not run on the CPU for hours unnoticed, beside an idle GPU
            raise UsageError(
                f"there is an NVIDIA GPU, but torch {torch.__version__} cannot use it; {HOW_TO_USE_THE_GPU}"
            )
        return "cpu"
    kind, _, number = setting.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 0
    if kind == "cuda" and int(number or 0) >= count:
        raise UsageError(
            f"CLIPFLEET_DEVICE is {setting}, but torch {torch.__version__} sees {count or 'no'} "
            f"GPU{'s' if count > 1 else ''} here"
        )
    return setting


def has_nvidia_gpu() -> bool:
    """Whether there is an NVIDIA driver, and CUDA_VISIBLE_DEVICES does not hide all GPUs."""
    return _NVIDIA_DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in _HIDES_ALL_GPUS


def resolve_precision(requested: Precision, device: str) -> Precision:
    """Resolve `auto` to bf16 where the device has it in hardware, else to fp16 on a GPU and fp32 on a CPU.

    Raises:
        ModelUnavailableError: the device cannot compute in this precision.
    """
    is_cpu = device == "cpu"
    if requested is Precision.AUTO:
        if is_cpu:
            return Precision.BF16 if _cpu_has_bf16() else Precision.FP32
        return Precision.BF16 if _gpu_has_bf16(device) else Precision.FP16
    if requested is Precision.FP16 and is_cpu:
        raise ModelUnavailableError("precision fp16 needs a GPU; use auto, bf16 or fp32 on this worker")
    return requested


def is_lost(error: Exception) -> bool:
    """Whether this process can no longer use the GPU, for example after an illegal memory access."""
    words = str(error)
    return not lacks_memory(words) and any(fault in words for fault in _LOST)


def cpu_name() -> str:
    """Model and flags of the CPU; empty if the system does not report them."""
    return _cpu_says("model name") + _cpu_says("flags")


def _gpu_has_bf16(device: str) -> bool:
    import torch

    return torch.cuda.get_device_capability(device) >= (8, 0)  # older ones emulate it


def _cpu_has_bf16() -> bool:
    return not _CPU_BF16_FLAGS.isdisjoint(_cpu_says("flags").split())


def _cpu_says(word: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return ""
    return next((line for line in text.splitlines() if line.startswith(word)), "")


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise `MemoryError` where torch could not allocate memory on the device or the machine."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or lacks_memory(str(error)):
            raise MemoryError(str(error).splitlines()[0][:200]) from error
        raise


def lacks_memory(words: str) -> bool:
    """Whether the message of an exception reports too little memory."""
    return any(part in words for part in _NO_MEMORY)


def device_bytes(device: str) -> Mapping[str, int]:
    """Memory of a GPU by kind, as in `clipfleet_device_memory_bytes`; empty on CPUs and before its use."""
    import torch

    # Before the first use this call would initialise the GPU.
    if not device.startswith("cuda") or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "free": free,
        "total": total,
    }
