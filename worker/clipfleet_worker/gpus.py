"""Which GPUs torch sees on this machine, asked in a process of its own.

Whoever supervises workers stays small that way: it never loads torch, and holds no device.
"""

from __future__ import annotations

import json
import subprocess
import sys

from clipfleet.errors import WorldError

_ASK_SECONDS = 300.0  # to load torch from a cold disk, and the driver


def find_gpus() -> tuple[int, ...]:
    """The bytes of memory of each, `cuda:0` first; `CUDA_VISIBLE_DEVICES` is heeded.

    Raises:
        WorldError: torch cannot tell.
    """
    command = [sys.executable, "-P", "-m", "clipfleet_worker.gpus"]
    try:
        asked = subprocess.run(  # noqa: S603 - our own
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=False,
        )
        return tuple(map(int, json.loads(asked.stdout)))
    except subprocess.TimeoutExpired:
        raise WorldError(f"torch did not say in {_ASK_SECONDS:g} s which GPUs there are") from None
    except ValueError:
        last_words = (asked.stderr.strip().splitlines() or ["nothing"])[-1][:200]
        raise WorldError(f"torch cannot tell which GPUs there are; its last words: {last_words}") from None


def _memory_of_each() -> list[int]:
    import torch

    return [torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_memory_of_each()))
