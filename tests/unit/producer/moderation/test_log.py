"""The log of decisions: what is written stays, is found by its id and by its day, and damage is named."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clipfleet.contract.jobs import REDIS_OUTPUT
from clipfleet.contract.policies import DecisionId
from clipfleet.errors import OutputDamagedError
from clipfleet.moderation.log import (
    RecordFile,
    all_records,
    days,
    find_record,
    has_policy,
    read_policy,
    write_policy,
    write_records,
)
from clipfleet.outputs.folder import FolderOutput
from tests.support.decision_logs import CREATED, decision_id, log_records, logged_job, make_record
from tests.support.policies import make_policy, moderation_job

POLICY = make_policy()


@pytest.fixture
def output(tmp_path: Path) -> FolderOutput:
    return FolderOutput(tmp_path / "place")


def ids(output: FolderOutput, *period: date) -> list[str]:
    return [record["decision_id"] for records in all_records(output, *period) for record in records]


@pytest.mark.parametrize("until", [None, "20270101"])
def test_a_name_says_what_is_in_the_file(until: str | None) -> None:
    file = RecordFile("20261203", "0123456789ab", 2, 512, 1023, until)

    assert RecordFile.of_name(file.name) == file


@pytest.mark.parametrize("name", ["x.jsonl", "_decisions/records/20261203/notes.txt", "a-b-c-d.jsonl"])
def test_other_names_are_no_files_of_records(name: str) -> None:
    assert RecordFile.of_name(name) is None


def test_a_record_is_found_by_its_id(output: FolderOutput) -> None:
    job, other = logged_job(output, POLICY), logged_job(output, POLICY, "j2")
    log_records(output, job, *(make_record(job, index) for index in range(4)))
    log_records(output, job, *(make_record(job, index) for index in range(4, 8)))
    log_records(output, other, make_record(other, 5))

    assert find_record(output, decision_id(job, 5)) == make_record(job, 5)
    assert find_record(output, decision_id(other, 5)) == make_record(other, 5)
    assert find_record(output, decision_id(job, 9)) is None
    assert find_record(output, DecisionId("20200101", "0" * 12, 0, 0)) is None


def test_the_records_of_a_retry_stand_beside_the_first_ones(output: FolderOutput) -> None:
    job = logged_job(output, POLICY)
    failed = make_record(job, 1, status="undecided", error={"code": "timeout", "detail": "x"})
    log_records(output, job, make_record(job, 0), failed)
    log_records(output, job, make_record(job, 1, generation=1), generation=1)

    assert find_record(output, decision_id(job, 1)) == failed
    assert find_record(output, decision_id(job, 1, 1)) == make_record(job, 1, generation=1)
    assert len(ids(output)) == 3


def test_a_chunk_that_is_recorded_twice_is_there_once(output: FolderOutput) -> None:
    job = logged_job(output, POLICY)
    log_records(output, job, make_record(job))
    log_records(output, job, make_record(job, at="2026-12-03T11:00:00.000Z"))

    assert find_record(output, decision_id(job)) == make_record(job)
    assert ids(output) == [str(decision_id(job))]


def test_of_rows_that_were_not_final_the_last_record_counts(output: FolderOutput) -> None:
    """As those of Redis; across midnight, also the names differ."""
    job = logged_job(output, POLICY, keep_days=30)
    for hours in (0, 24):
        at = CREATED + timedelta(hours=hours)
        record = make_record(job, at=f"{at:%Y-%m-%dT%H:%M:%S.000Z}")
        write_records(output, job, 0, [record], at.date(), may_replace=True)

    found = find_record(output, decision_id(job))

    assert found is not None
    assert found["at"] == "2026-12-04T10:00:00.000Z"
    assert [record["at"] for records in all_records(output) for record in records] == [found["at"]]


def test_the_time_to_keep_is_in_the_name(output: FolderOutput) -> None:
    job = logged_job(output, POLICY, keep_days=400)
    log_records(output, job, make_record(job))

    (name,) = output.names("_decisions/records/20261203/")

    assert name.endswith("-0-0-0-until-20280107.jsonl")


def test_days_are_of_the_ids_and_periods_include_both_ends(output: FolderOutput) -> None:
    for number, day in enumerate((1, 2, 3)):
        job = logged_job(output, POLICY, f"j{number}", created_at=datetime(2026, 12, day, tzinfo=UTC))
        log_records(output, job, make_record(job))
    output.create("_decisions/records/lost+found/x", b"")

    assert days(output) == ["20261201", "20261202", "20261203"]
    assert days(output, date(2026, 12, 2)) == ["20261202", "20261203"]
    assert days(output, None, date(2026, 12, 2)) == ["20261201", "20261202"]
    assert len(ids(output, date(2026, 12, 2), date(2026, 12, 2))) == 1


def test_nothing_is_recorded_without_a_log(output: FolderOutput) -> None:
    job = moderation_job(POLICY, REDIS_OUTPUT)

    write_records(output, job, 0, [make_record(job)], CREATED.date())

    assert days(output) == []


@pytest.mark.parametrize("damaged", [b"{\n", b"[1]\n", b'{"decision_id": "x"}\n', b"\xff\n"])
def test_damaged_records_are_named(output: FolderOutput, damaged: bytes) -> None:
    job = logged_job(output, POLICY)
    log_records(output, job, make_record(job))
    (name,) = output.names("_decisions/records/20261203/")
    output.replace(name, damaged)

    for read in (lambda: find_record(output, decision_id(job)), lambda: ids(output)):
        with pytest.raises(OutputDamagedError, match=rf"{name}: not the records of decisions"):
            read()


class TestPolicies:
    def test_a_policy_is_read_as_it_was(self, output: FolderOutput) -> None:
        logged_job(output, POLICY)
        logged_job(output, POLICY)

        assert has_policy(output, POLICY.sha256)
        assert read_policy(output, POLICY.sha256) == POLICY
        assert read_policy(output, "0" * 64) is None
        assert not has_policy(output, "0" * 64)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda data: data.replace(b'"cat"', b'"cow"'), "its content has another hash: it was changed"),
            (lambda data: data[:-1], "not a policy"),
            (lambda data: b"[]", "not a policy"),
        ],
    )
    def test_a_changed_policy_is_named(self, output: FolderOutput, change: Any, problem: str) -> None:
        logged_job(output, POLICY)
        name = f"_decisions/policies/{POLICY.sha256}.json"
        output.replace(name, change(output.read(name)))

        with pytest.raises(OutputDamagedError, match=f"{name}: {problem}"):
            read_policy(output, POLICY.sha256)

    def test_other_jobs_have_none(self, output: FolderOutput) -> None:
        job = moderation_job(POLICY).model_copy(update={"policy": None})
        with pytest.raises(ValueError, match="has no policy"):
            write_policy(output, job)
