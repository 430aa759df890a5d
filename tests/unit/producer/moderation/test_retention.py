"""Retention: what has passed its last day goes with its verdicts, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from clipfleet.contract.jobs import Job
from clipfleet.moderation.log import find_record, has_policy
from clipfleet.moderation.retention import Pruned, prune
from clipfleet.moderation.verdicts import Outcome, ReviewerVerdict, add_verdict, verdicts_of
from clipfleet.outputs.folder import FolderOutput
from tests.support.decision_logs import decision_id, log_records, logged_job, make_record
from tests.support.policies import make_policy

POLICY = make_policy()
LAST, NEXT = date(2026, 12, 13), date(2026, 12, 14)


@pytest.fixture
def output(tmp_path: Path) -> FolderOutput:
    return FolderOutput(tmp_path / "place")


def logged(output: FolderOutput, job_id: str, keep_days: int | None) -> Job:
    """A job with two decisions, and a verdict on each."""
    job = logged_job(output, POLICY, job_id, keep_days=keep_days)
    log_records(output, job, make_record(job, 0), make_record(job, 1))
    for index in (0, 1):
        add_verdict(output, make_record(job, index), ReviewerVerdict(verdict=Outcome.UPHELD))
    return job


def tree(output: FolderOutput) -> list[str]:
    root = Path(output.uri)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if "_clipfleet" not in path.parts)


def test_a_file_is_kept_through_its_last_day(output: FolderOutput) -> None:
    job = logged(output, "old", 10)

    assert prune(output, LAST) == Pruned(0, 0)
    assert find_record(output, decision_id(job)) is not None
    assert prune(output, NEXT) == Pruned(record_files=1, verdicts=2)
    assert find_record(output, decision_id(job)) is None
    assert verdicts_of(output, decision_id(job)) == []
    assert prune(output, NEXT) == Pruned(0, 0)


def test_what_is_kept_longer_or_for_ever_stays_with_its_verdicts(output: FolderOutput) -> None:
    logged(output, "old", 10)
    kept = [logged(output, "longer", 11), logged(output, "for-ever", None)]
    foreign = "_decisions/records/20261203/notes-until-20200101.jsonl"
    output.create(foreign, b"x")

    prune(output, NEXT)

    for job in kept:
        assert find_record(output, decision_id(job, 1)) is not None
        assert len(verdicts_of(output, decision_id(job, 1))) == 1
    assert output.read(foreign) == b"x"
    assert has_policy(output, POLICY.sha256)


def test_of_two_files_of_one_decision_the_later_keeps_its_verdicts(output: FolderOutput) -> None:
    job = logged(output, "redis", 10)
    log_records(output, job, make_record(job, 0), make_record(job, 1), today=date(2026, 12, 4))

    assert prune(output, NEXT) == Pruned(record_files=1, verdicts=0)
    assert len(verdicts_of(output, decision_id(job))) == 1


def test_a_dry_run_removes_nothing(output: FolderOutput) -> None:
    logged(output, "old", 10)
    before = tree(output)

    assert prune(output, NEXT, is_dry=True) == Pruned(record_files=1, verdicts=2)
    assert tree(output) == before


def test_emptied_days_are_removed(output: FolderOutput) -> None:
    logged(output, "old", 10)

    prune(output, NEXT)

    assert [name for name in tree(output) if "20261203" in name] == []


@pytest.mark.parametrize("removed", range(3))
def test_what_an_interrupted_run_has_left_goes_with_the_next(
    output: FolderOutput, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    logged(output, "old", 10)
    remove: Callable[[str], Any] = output.remove
    left = iter(range(removed))

    def dying(name: str) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        remove(name)

    monkeypatch.setattr(output, "remove", dying)
    with pytest.raises(KeyboardInterrupt):
        prune(output, NEXT)
    monkeypatch.undo()
    prune(output, NEXT)

    assert [name for name in tree(output) if "20261203" in name] == []


def test_where_nothing_was_decided_there_is_nothing_to_remove(output: FolderOutput) -> None:
    assert prune(output, NEXT) == Pruned(0, 0)
