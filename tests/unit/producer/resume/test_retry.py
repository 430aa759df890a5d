"""What a retry keeps, and what it waits for. The rest needs a real ledger: `tests/e2e/test_retry.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipfleet.contract.jobs import ErrorCode, JobState
from clipfleet.contract.parts import PartCounts, PartIdentity
from clipfleet.errors import UsageError
from clipfleet.hints import Hints
from clipfleet.ledger.drafts import Drafts
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.resume.retry import Retry, has_failed, take_inventory
from tests.support.jobs import make_job, make_status, place_job
from tests.support.ledger_replies import RepliesLedger

LEASE_SECONDS = 45.0


class PlainStore(FolderOutput):
    """One that ignores conditions."""

    @property
    def has_conditional_writes(self) -> bool:
        return False


def slept(output: FolderOutput, state: JobState) -> list[float]:
    job, seconds, ledger = make_job(output.uri), [], RepliesLedger()
    ledger.replies["status"] = make_status(state=state, generation=1, chunks=0)
    ledger.drafts = Drafts(lambda *_: None, ledger.status)
    place_job(output, job)
    waits: dict[str, Any] = {"lease_seconds": LEASE_SECONDS, "sleep": seconds.append}
    Retry(ledger, cast(Hints, None), output, lambda chunks: [], job, **waits).run()
    return seconds


@pytest.mark.parametrize(("kind", "expected"), [(FolderOutput, []), (PlainStore, [LEASE_SECONDS])])
def test_plain_stores_wait_for_a_lease(tmp_path: Path, kind: Any, expected: list[float]) -> None:
    assert slept(kind(tmp_path / "out"), JobState.COMPLETED) == expected


def test_a_retry_that_is_under_way_is_not_waited_for(tmp_path: Path) -> None:
    assert slept(PlainStore(tmp_path / "out"), JobState.RUNNING) == []


@pytest.mark.parametrize("codes", [[], [ErrorCode.TIMEOUT]])
def test_where_the_items_are_gone_nothing_changes(output: FolderOutput, codes: list[ErrorCode]) -> None:
    """A finished output must not look as if it were in progress."""
    job, ledger = make_job(output.uri), RepliesLedger()
    ledger.replies["status"] = make_status(state=JobState.COMPLETED_WITH_ERRORS, chunks=2)
    ledger.drafts = Drafts(lambda *_: None, ledger.status)
    place_job(output, job)
    output.replace(objects.SUCCESS, b"")
    before = sorted(Path(output.uri).rglob("*"))
    parts = [(PartIdentity(job.job_id, 0, 0), PartCounts(1, 1, {"timeout": 1}))]
    gone = Mock(side_effect=UsageError("gone"))

    with pytest.raises(UsageError, match="gone"):
        Retry(
            ledger, cast(Hints, None), output, lambda chunks: parts, job, lease_seconds=1, require_items=gone
        ).run(codes)

    assert sorted(Path(output.uri).rglob("*")) == before
    assert output.read(objects.SUCCESS) == b""


def test_where_there_is_nothing_to_retry_the_items_may_be_gone(output: FolderOutput) -> None:
    job, ledger = make_job(output.uri), RepliesLedger()
    ledger.replies["status"] = make_status(state=JobState.COMPLETED, chunks=0)
    ledger.drafts = Drafts(lambda *_: None, ledger.status)
    place_job(output, job)
    gone = Mock(side_effect=AssertionError("asked"))

    assert not Retry(
        ledger, cast(Hints, None), output, lambda chunks: [], job, lease_seconds=1, require_items=gone
    ).run()


CODES = st.dictionaries(st.sampled_from(["timeout", "empty", "crashed"]), st.integers(1, 9))
COUNTS = st.builds(lambda ok, codes: PartCounts(ok, sum(codes.values()), codes), st.integers(0, 9), CODES)


@given(
    parts=st.dictionaries(st.integers(0, 40), st.tuples(st.integers(0, 3), COUNTS)),
    beyond=st.integers(0, 9),
    codes=st.sets(st.sampled_from(["timeout", "empty", "not_found"])),
)
def test_of_any_parts_those_without_the_codes_are_kept_and_all_others_run_again(
    parts: dict[int, tuple[int, PartCounts]], beyond: int, codes: set[str]
) -> None:
    chunks = max(parts, default=-1) + 1 + beyond
    found = [(PartIdentity("j", chunk, generation), one) for chunk, (generation, one) in parts.items()]

    taken = take_inventory(found, chunks, lambda _, counts: not has_failed(counts, [*codes]))

    kept = {
        chunk: one
        for chunk, (_, one) in parts.items()
        if (codes.isdisjoint(one.codes) if codes else one.failed == 0)
    }
    bits = "".join(f"{byte:08b}" for byte in taken.done)
    assert {chunk for chunk, bit in enumerate(bits) if bit == "1"} == set(kept)
    assert {*taken.due, *range(taken.next_chunk, chunks)} == set(range(chunks)) - set(kept)
    assert taken.open_chunks == chunks - len(kept)
    assert taken.generation == max((generation for generation, _ in parts.values()), default=0)
    assert taken.counts.ok == sum(one.ok for one in kept.values())
    assert taken.counts.failed == sum(one.failed for one in kept.values()) == sum(taken.counts.codes.values())
