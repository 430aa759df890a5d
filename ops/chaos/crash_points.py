"""Steps at which a program may die: named, so that a harness can let it die exactly there.

The product knows nothing of them. The harness has a process of its own pass them, by wrapping the methods
between which they lie, before that process makes its client or its worker.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import Any


class CrashPoint(StrEnum):
    """The steps, in the order of a job's life. All but `MID_SUBMIT` and `AFTER_SEAL` are a worker's."""

    MID_SUBMIT = "mid_submit"  # a staged file is in place, the ledger does not know it
    AFTER_SEAL = "after_seal"  # the source has ended, the submit has not returned
    AFTER_CLAIM = "after_claim"  # a chunk is leased, nothing of it is done
    MID_FETCH = "mid_fetch"  # some bytes of a chunk have come, others have not
    BEFORE_WRITE = "before_write"  # the rows exist in memory only
    MID_WRITE = "mid_write"  # rows are in a scratch file, or in Redis under the claim's token, hidden
    AFTER_WRITE = "after_write"  # the part is in place, the ledger does not know it
    AFTER_COMPLETE = "after_complete"  # the chunk is done, its successors got no hint
    BEFORE_ACK = "before_ack"  # the hint's work is over, the broker does not know it
    MID_FINISH = "mid_finish"  # thrice: `_errors.jsonl`, the manifest, `_SUCCESS` was just written


Reach = Callable[[CrashPoint], object]  # called at each step that is reached, by any thread
Patch = Callable[[Any, str, Any], object]  # `setattr`, or one that takes it back


def stand_in_submits(reach: Reach, patch: Patch = setattr) -> None:
    """Have the submits of this process pass theirs."""
    from clipfleet.ledger.jobs import Ledger

    _before(Ledger, "stage", lambda: reach(CrashPoint.MID_SUBMIT), patch)
    _after(Ledger, "seal", lambda _: reach(CrashPoint.AFTER_SEAL), patch)


def stand_in_worker(reach: Reach, patch: Patch = setattr) -> None:
    """Have the worker of this process pass all the others."""
    from celery import signals

    from clipfleet.ledger.row_store import RedisStore
    from clipfleet.parts.jsonl import JsonlParts
    from clipfleet.parts.parquet import ParquetParts
    from clipfleet_worker.assembly import worker as lifecycle
    from clipfleet_worker.chunk.item_path import ItemPath
    from clipfleet_worker.finish.finisher import Finisher
    from clipfleet_worker.sinks.parts import PartSink
    from clipfleet_worker.sinks.redis import RedisSink

    ledger = vars(lifecycle)["Ledger"]  # a harness may have put one of its own there

    def at(point: CrashPoint) -> Callable[..., object]:
        return lambda *_: reach(point)

    _after(ledger, "claim", lambda claim: claim and reach(CrashPoint.AFTER_CLAIM), patch)
    _before(ItemPath, "_decode_fetched", at(CrashPoint.MID_FETCH), patch)
    _after(ItemPath, "_read", at(CrashPoint.MID_FETCH), patch)
    for sink in (PartSink, RedisSink):
        _before(sink, "write", at(CrashPoint.BEFORE_WRITE), patch)
        _after(sink, "write", at(CrashPoint.AFTER_WRITE), patch)
    for parts in (ParquetParts, JsonlParts):
        _after(parts, "write", at(CrashPoint.MID_WRITE), patch)
    _after(RedisStore, "write_rows", lambda word: word == "written" and reach(CrashPoint.MID_WRITE), patch)
    _after(ledger, "complete", at(CrashPoint.AFTER_COMPLETE), patch)
    _after(Finisher, "_write_errors", at(CrashPoint.MID_FINISH), patch)
    _before(Finisher, "_sweep", at(CrashPoint.MID_FINISH), patch)
    _before(ledger, "finish", at(CrashPoint.MID_FINISH), patch)
    signals.task_postrun.connect(lambda **_: reach(CrashPoint.BEFORE_ACK), weak=False)


def _before(kind: Any, name: str, step: Callable[[], object], patch: Patch) -> None:
    method = getattr(kind, name)

    @wraps(method)
    def stepping(*args: Any, **options: Any) -> Any:
        step()
        return method(*args, **options)

    patch(kind, name, stepping)


def _after(kind: Any, name: str, step: Callable[[Any], object], patch: Patch) -> None:
    method = getattr(kind, name)

    @wraps(method)
    def stepping(*args: Any, **options: Any) -> Any:
        answer = method(*args, **options)
        step(answer)
        return answer

    patch(kind, name, stepping)
