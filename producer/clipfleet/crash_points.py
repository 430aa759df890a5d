"""Steps at which a program may die: named, so that tests can let it die exactly there.

In production nothing happens at them. Whoever wants more injects an object of their own through the
constructors of `Client` and the worker; no setting and no variable leads here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class CrashPoint(StrEnum):
    """The steps, in the order of a job's life. All but `MID_SUBMIT` and `AFTER_SEAL` are a worker's."""

    MID_SUBMIT = "mid_submit"  # a staged file is in place, the ledger does not know it
    AFTER_SEAL = "after_seal"  # the source has ended, the submit has not returned
    AFTER_CLAIM = "after_claim"  # a chunk is leased, nothing of it is done
    MID_FETCH = "mid_fetch"  # some bytes of a chunk have come, others have not
    BEFORE_WRITE = "before_write"  # the rows exist in memory only
    MID_WRITE = "mid_write"  # rows are in a scratch file, or in Redis under the claim's token, hidden
    AFTER_WRITE = "after_write"  # the part is in place, the ledger does not know it
    AFTER_COMPLETE = "after_complete"  # the chunk is done, its successors were not told
    BEFORE_ACK = "before_ack"  # the hint's work is over, the broker does not know it
    MID_FINISH = "mid_finish"  # passed three times: `errors.jsonl`, the manifest, `_SUCCESS` was just written


class CrashPoints(Protocol):
    """Told of every step that is reached; may be called by any thread, and must not raise."""

    def reach(self, point: CrashPoint) -> None:
        """The program is at this step now."""


class _NoCrashPoints:
    def reach(self, point: CrashPoint) -> None:
        """Nothing happens."""


NO_CRASH_POINTS: CrashPoints = _NoCrashPoints()
