"""How a replay decides, what it refuses, and that its jobs end with it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from clipfleet.contract.columns import VectorType
from clipfleet.contract.job_names import UNNAMED_JOB_ID_PATTERN
from clipfleet.contract.jobs import Job, JobState
from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.contract.policies import Policy
from clipfleet.errors import JobNotFoundError, TooManyItemsError, UsageError
from clipfleet.moderation.policy_files import PolicyFile
from clipfleet.relabel.origin import Origin
from clipfleet.replay.replaying import Replay, ReplayError, Services
from clipfleet.results.rows import RowReader
from clipfleet.submit.options import JobOptions
from tests.support.jobs import make_job
from tests.support.policies import make_policy, moderation_job
from tests.support.vector_outputs import vectors_of

OLD = make_policy()
REWORDED = make_policy(
    label_sets=(LabelSet(name="things", kind=LabelKind.MULTI, labels=("cat", "dog"), templates=("{}",)),)
)


@dataclass
class Reader:
    """Of the rows of a job."""

    about: Job | None
    has_finished: bool = True
    uri: str = "/out"

    def job(self) -> Job | None:
        return self.about

    def finished_at(self) -> datetime | None:
        return datetime(2026, 12, 3, tzinfo=UTC) if self.has_finished else None


@dataclass
class Fleet:
    """Takes jobs, which end as they should or are waited for in vain."""

    origin: Any = None
    ends: JobState = JobState.COMPLETED
    fails_at: int | None = None  # the submit that is refused
    submitted: list[JobOptions] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def services(self) -> Services:
        return Services(self._origin, self._policy, self._submit, self._cancel)

    def _origin(self) -> Origin:
        assert self.origin is not None, "no vector is needed"
        return cast("Origin", self.origin)

    def _policy(self, job: Job, known: object) -> PolicyFile:
        return PolicyFile(OLD)

    def _submit(self, origin: Origin, policy: PolicyFile, options: JobOptions) -> Any:
        if len(self.submitted) == self.fails_at:
            raise UsageError("refused")
        self.submitted.append(options)
        job = SimpleNamespace(policy=policy.policy.of_a_job(is_dry=True))
        return SimpleNamespace(job_id=options.job_id, job=job, output=options.output)

    def _cancel(self, job_id: str) -> None:
        if job_id not in [one.job_id for one in self.submitted]:
            raise JobNotFoundError(job_id)
        self.cancelled.append(job_id)

    def wait(self, job: Any) -> Any:
        return SimpleNamespace(state=self.ends, reason="the weights differ")


def origin_of(job: Job, items: int = 9) -> Any:
    return SimpleNamespace(job=job, items=items, vectors=vectors_of(job))


def run(reader: Reader, fleet: Fleet, new: Policy = REWORDED, **values: Any) -> None:
    values = {"options": JobOptions(), "wait": fleet.wait, **values}
    Replay(reader=cast("RowReader", reader), services=fleet.services(), new=PolicyFile(new), **values).run()


class TestRefusals:
    def test_without_an_old_side(self) -> None:
        with pytest.raises(UsageError, match=r"no decisions to compare with: .* `against=`"):
            run(Reader(make_job(store_embeddings=True)), Fleet())

    def test_a_job_that_runs(self) -> None:
        with pytest.raises(UsageError, match="has not finished: wait for it"):
            run(Reader(moderation_job(OLD), has_finished=False), Fleet(), OLD)

    def test_other_scores_without_vectors(self) -> None:
        with pytest.raises(UsageError, match=r"had other templates\), .*`store_embeddings=True`"):
            run(Reader(moderation_job(OLD)), Fleet())

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"model": "ViT-B-32:openai"}, r"`model: ViT-B-32:openai`, those of job \S+ have demo"),
            ({"decode": "exact"}, r"`decode: exact`, those of job \S+ have fast: write `decode: fast`"),
        ],
    )
    def test_vectors_of_another_model(self, values: dict[str, str], words: str) -> None:
        job = moderation_job(OLD, store_embeddings=True)

        with pytest.raises(UsageError, match=words):
            run(Reader(job), Fleet(origin_of(job)), OLD.model_copy(update=values))

    def test_more_items_than_redis_takes(self) -> None:
        job = moderation_job(OLD, store_embeddings=True)
        fleet = Fleet(origin_of(job, 100_001))

        with pytest.raises(TooManyItemsError, match=r"100,001 items, .* 100,000: give an `output=`"):
            run(Reader(job), fleet)
        assert fleet.submitted == []

    @pytest.mark.parametrize("name", ["job_id", "precision", "store_embeddings", "on_finished"])
    def test_options_of_other_jobs(self, name: str) -> None:
        values = {"job_id": "mine", "precision": "fp32", "store_embeddings": True, "on_finished": "a.b"}
        fleet = Fleet(origin_of(TestJobs.JOB))

        with pytest.raises(UsageError, match=f"`{name}=` is not for a replay"):
            run(Reader(TestJobs.JOB), fleet, options=JobOptions(**{name: values[name]}))

    def test_changes_of_no_format(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"\.jsonl, \.csv or \.parquet"):
            run(Reader(moderation_job(OLD)), Fleet(), OLD, changes=tmp_path / "changes.txt")


class TestJobs:
    JOB = moderation_job(OLD, store_embeddings=True)

    def test_each_side_has_its_own(self, tmp_path: Path) -> None:
        fleet = Fleet(origin_of(self.JOB), JobState.FAILED)
        with pytest.raises(ReplayError, match=r"by policy 'uploads', is failed: the weights differ"):
            asked = JobOptions(output=tmp_path / "out", overwrite=True, vector_type=VectorType.FLOAT16)
            run(Reader(self.JOB), fleet, options=asked)

        old, new = fleet.submitted
        assert (old.output, new.output) == (f"{tmp_path}/out/old", f"{tmp_path}/out/new")
        assert (old.job_id, new.job_id) == (
            f"replay-old-{str(old.job_id)[-16:]}", f"replay-new-{str(old.job_id)[-16:]}",
        )  # fmt: skip
        assert old.overwrite and new.overwrite
        assert "vector_type" not in old.model_fields_set

    def test_both_are_cancelled_if_one_fails(self) -> None:
        fleet = Fleet(origin_of(self.JOB), JobState.FAILED)

        with pytest.raises(ReplayError):
            run(Reader(self.JOB), fleet)

        assert fleet.cancelled == [one.job_id for one in fleet.submitted]
        assert len(fleet.cancelled) == 2

    def test_the_first_is_cancelled_if_the_second_is_refused(self) -> None:
        fleet = Fleet(origin_of(self.JOB), fails_at=1)

        with pytest.raises(UsageError, match="refused"):
            run(Reader(self.JOB), fleet)

        assert fleet.cancelled == [fleet.submitted[0].job_id]

    def test_an_interrupt_cancels_both(self) -> None:
        fleet = Fleet(origin_of(self.JOB))

        def interrupted(job: Any) -> Any:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(Reader(self.JOB), fleet, wait=interrupted)

        assert len(fleet.cancelled) == 2


def test_the_name_of_a_job_is_no_name_of_a_user() -> None:
    fleet = Fleet(origin_of(TestJobs.JOB), JobState.FAILED)
    with pytest.raises(ReplayError):
        run(Reader(TestJobs.JOB), fleet)

    for one in fleet.submitted:
        assert re.fullmatch(UNNAMED_JOB_ID_PATTERN, str(one.job_id))
