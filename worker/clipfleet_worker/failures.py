"""The exceptions inside a worker: of an item, of a chunk, of a model."""

from __future__ import annotations

from clipfleet.contract.jobs import ErrorCode, ItemError

_DETAIL_LIMIT = 300


class ItemFailure(Exception):  # noqa: N818 - the design's word
    """One item cannot be processed; it becomes a `failed` row."""

    def __init__(self, code: ErrorCode, detail: str) -> None:
        self.error = ItemError(code, " ".join(detail.split())[:_DETAIL_LIMIT])
        super().__init__(f"{code}: {self.error.detail}")


class TransientFailure(ItemFailure):
    """The reason may be gone in a moment: a host that is away, overloaded or slow. It is asked again.

    Args:
        code: see `ItemFailure`.
        detail: see `ItemFailure`.
        retry_after_seconds: when to come again, where the host has said so.
    """

    def __init__(self, code: ErrorCode, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(code, detail)
        self.retry_after_seconds = retry_after_seconds


class HostLeftAlone(ItemFailure):
    """The host has failed too often in a row and was not asked; the code is that of its last failure.

    Args:
        code: see `ItemFailure`.
        detail: see `ItemFailure`.
        wait_seconds: when it will be tried again.
        is_old: it has been failing for so long that it may not come back soon.
    """

    def __init__(self, code: ErrorCode, detail: str, *, wait_seconds: float, is_old: bool) -> None:
        super().__init__(code, detail)
        self.wait_seconds = wait_seconds
        self.is_old = is_old


def too_many_bytes(limit_bytes: int) -> ItemFailure:
    """The failure of an item whose file is larger than is taken."""
    return ItemFailure(ErrorCode.TOO_MANY_BYTES, f"more than {limit_bytes} bytes")


class ChunkInterrupted(Exception):  # noqa: N818 - the design's words
    """The chunk is no longer ours to finish (cancelled, lease lost) or cannot be finished in time (drain)."""


class WorkerShortageError(Exception):
    """This worker lacks file descriptors, threads or memory: no item is to blame, and its chunk waits."""


class ModelUnavailableError(Exception):
    """The model cannot be loaded on this machine; the message is one line and says what to do."""


def first_line(error: BaseException) -> str:
    """What an exception says, fit for one line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
