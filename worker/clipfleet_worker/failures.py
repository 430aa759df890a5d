"""The exceptions inside a worker: of an item, a chunk or a model."""

from __future__ import annotations

from clipfleet.contract.jobs import ErrorCode, ItemError
from clipfleet.errors import OutputRefusedError

_DETAIL_LIMIT = 300


class ItemFailure(Exception):  # noqa: N818 - the design's word
    """One item cannot be processed; it becomes a `failed` row."""

    def __init__(self, code: ErrorCode, detail: str) -> None:
        self.error = ItemError(code, " ".join(detail.split())[:_DETAIL_LIMIT])
        super().__init__(f"{code}: {self.error.detail}")


class TransientFailure(ItemFailure):
    """The reason may be temporary, such as an overloaded or slow host: the item is retried.

    Args:
        code: see `ItemFailure`.
        detail: see `ItemFailure`.
        retry_after_seconds: of the host's answer, if it has it.
    """

    def __init__(self, code: ErrorCode, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(code, detail)
        self.retry_after_seconds = retry_after_seconds


class HostLeftAlone(ItemFailure):
    """The host has failed too often in a row and gets no request; the code is of its last failure.

    Args:
        code: see `ItemFailure`.
        detail: see `ItemFailure`.
        wait_seconds: until the host is tried again.
        is_old: whether it has failed for so long that it may not come back soon.
    """

    def __init__(self, code: ErrorCode, detail: str, *, wait_seconds: float, is_old: bool) -> None:
        super().__init__(code, detail)
        self.wait_seconds = wait_seconds
        self.is_old = is_old


def too_many_bytes(limit_bytes: int) -> ItemFailure:
    """Make the failure of an item whose file is too large."""
    return ItemFailure(ErrorCode.TOO_MANY_BYTES, f"more than {limit_bytes} bytes")


class ChunkInterrupted(Exception):  # noqa: N818 - the design's words
    """The chunk is no longer ours (cancelled, lease lost), or cannot end in time (drain)."""


class ChunkLostError(Exception):
    """Not even the failed rows of a chunk can be written: that, too, has cost many workers."""


class WorkerShortageError(Exception):
    """This worker lacks file descriptors, threads or memory: the chunk waits, no item fails."""


class ModelUnavailableError(Exception):
    """The model cannot be loaded on this machine; the message is one line with a way out."""


class ModelMismatchError(OutputRefusedError):
    """The vectors or a head of a job are of another model than the one that this worker has by its name.

    Workers that have the other one may do the job.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, cut to 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
