"""Vectors of an output, as evaluations read them, and the jobs that make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clipfleet.contract.jobs import DecodeRoute, Exif, JobState
from clipfleet.contract.label_sets import short_hash
from clipfleet.errors import (
    ClipfleetError,
    JobConflictError,
    JobNotFoundError,
    OutputConflictError,
    UsageError,
)
from clipfleet.evaluation.vectors import Embedder, ModelOptions, default_place, embedded
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from tests.support import rows
from tests.support.jobs import make_job, place_job


def with_fingerprint(row: dict[str, Any], name: str = "f") -> dict[str, Any]:
    return {**row, "model_fingerprint": name}


GOOD = with_fingerprint(rows.embedded(0, 3.0, 4.0))


def test_vectors_are_in_order_and_of_length_1(output: FolderOutput) -> None:
    rows.add_part(output, 0, [GOOD, rows.failed(1)])
    rows.add_part(output, 1, [with_fingerprint(rows.embedded(2, 0.0, 2.0))])

    found = embedded(PartRows(output))

    np.testing.assert_allclose(found.features, [[0.6, 0.8], [0.0, 0.0], [0.0, 1.0]])
    assert found.ok.tolist() == [True, False, True]
    assert [(one.item_index, one.item_id, one.error_code) for one in found.failed] == [
        (1, "img1", "not_found")
    ]
    assert found.model_fingerprint == "f"


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ([GOOD, rows.embedded(1, float("nan"), 1.0)], "the vector of item 1 is not finite"),
        ([GOOD, rows.embedded(1, 0.0, 0.0)], "the vector of item 1 is not finite"),
        ([rows.classified(0)], "keeps no vectors"),
        ([GOOD, with_fingerprint(rows.embedded(1, 1.0, 0.0), "g")], "rows of 2 different models"),
        ([rows.embedded(4, 1.0, 0.0)], "rows are missing"),
    ],
)
def test_vectors_that_cannot_be_used(
    output: FolderOutput, stored: Sequence[dict[str, Any]], words: str
) -> None:
    rows.add_part(output, 0, stored)

    with pytest.raises(ClipfleetError, match=words):
        embedded(PartRows(output))


class Jobs:
    """A client whose embed jobs end in one of these states each, and leave these rows.

    `known` are ids of jobs in Redis, with their outputs; `conflicts` are raised by the first submits.
    """

    def __init__(
        self,
        *ends: tuple[JobState, Sequence[dict[str, Any]]],
        known: Mapping[str, str] | None = None,
        state: JobState = JobState.RUNNING,
        conflicts: Sequence[ClipfleetError] = (),
    ) -> None:
        self.ends = list(ends)
        self.known = known or {}
        self.state = state
        self.conflicts = list(conflicts)
        self.ids: list[str] = []
        self.asked: list[str] = []
        self.retried = 0

    def job(self, job_id: str) -> Any:
        if job_id not in self.known:
            raise JobNotFoundError(job_id)
        status = SimpleNamespace(state=self.state, sealed=not self.conflicts)
        return SimpleNamespace(output=self.known[job_id], status=lambda: status)

    def embed_text(self, source: Any, *, options: Any) -> Any:
        if self.conflicts:
            self.asked.append(options.job_id)
            raise self.conflicts.pop(0)
        had_ended = options.job_id in self.ids
        self.ids.append(options.job_id)
        return SimpleNamespace(
            output=options.output, job_id=options.job_id, had_ended=had_ended, retry=self.retry
        )

    def retry(self) -> None:
        self.retried += 1

    def wait(self, job: Any) -> Any:
        state, stored = self.ends.pop(0)
        output = FolderOutput(Path(job.output))
        if output.read(objects.JOB_FILE) is None:
            place_job(output, make_job(job.output, job_id=job.job_id))
        if stored:
            rows.note_manifest(output, [objects.LAYOUT.part(0)], job_id=job.job_id)
            output.remove(objects.LAYOUT.part(0))
            rows.add_part(output, 0, stored)
        return SimpleNamespace(state=state, reason="workers cannot write")


@pytest.fixture
def embedder(output: FolderOutput) -> Callable[[Any], Embedder]:
    return lambda jobs: Embedder(
        lambda: jobs, ModelOptions("demo"), output.uri, wait=jobs.wait, sleep=lambda seconds: None
    )


def test_each_text_is_embedded_once_and_read_from_then_on(embedder: Callable[[Any], Embedder]) -> None:
    jobs = Jobs((JobState.COMPLETED, [GOOD, with_fingerprint(rows.embedded(1, 0.0, 2.0))]))

    first = embedder(jobs).texts(["a", "b", "a"])
    again = embedder(jobs).texts(["a", "b", "a"])

    np.testing.assert_allclose(first.features, [[0.6, 0.8], [0.0, 1.0], [0.6, 0.8]])
    np.testing.assert_array_equal(first.features, again.features)
    assert len(jobs.ids) == 1


@pytest.mark.parametrize(("name", "file"), [("", "model.safetensors"), ("ViT-B-32:", "")])
def test_new_weights_in_the_same_place_are_embedded_anew(
    embedder: Callable[[Any], Embedder], tmp_path: Path, name: str, file: str
) -> None:
    weights = tmp_path / "trained" / file
    weights.parent.mkdir(exist_ok=True)
    weights.write_bytes(b"first")
    jobs = Jobs(*[(JobState.COMPLETED, [GOOD])] * 2)
    options = ModelOptions(f"{name}{tmp_path}/trained")
    one = replace(embedder(jobs), options=options)

    one.texts(["a"])
    one.texts(["a"])
    before = options.identity()
    weights.write_bytes(b"retrained")
    one.texts(["a"])

    assert len(set(jobs.ids)) == len(jobs.ids) == 2
    assert options.identity() != before


def test_prompts_have_the_fingerprint_of_the_images_route(embedder: Callable[[Any], Embedder]) -> None:
    jobs = Jobs(*[(JobState.COMPLETED, [GOOD])] * 3)
    one = embedder(jobs)

    for options in ({}, {"decode": DecodeRoute.EXACT}, {"exif": Exif.APPLY}):
        replace(one, options=replace(one.options, **options)).texts(["a"])

    assert len(set(jobs.ids)) == len(jobs.ids) == 3


def test_a_job_that_failed_is_continued_by_the_next_evaluation(embedder: Callable[[Any], Embedder]) -> None:
    jobs = Jobs((JobState.FAILED, ()), (JobState.COMPLETED, [GOOD]))

    with pytest.raises(ClipfleetError, match="is failed: workers cannot write; the same command"):
        embedder(jobs).texts(["a"])
    embedder(jobs).texts(["a"])

    assert (len({*jobs.ids}), jobs.retried) == (1, 1)


def test_items_that_all_failed_are_tried_again(embedder: Callable[[Any], Embedder]) -> None:
    jobs = Jobs((JobState.COMPLETED_WITH_ERRORS, [rows.failed(0)]), (JobState.COMPLETED_WITH_ERRORS, ()))

    for _ in range(2):
        with pytest.raises(ClipfleetError, match=r"none of 1 items could be .* img0: not_found"):
            embedder(jobs).texts(["a"])

    assert jobs.retried == 1


def test_a_job_whose_output_is_gone_gets_another_id(embedder: Callable[[Any], Embedder]) -> None:
    before = Jobs((JobState.FAILED, ()))
    with pytest.raises(ClipfleetError):
        embedder(before).texts(["a"])
    (name,) = before.ids
    place = f"{embedder(before).place}/new"
    folder = name.removeprefix("evaluate-")
    ended = Jobs((JobState.COMPLETED, [GOOD]), known={name: f"{place}/{folder}"}, state=JobState.CANCELLED)
    elsewhere = Jobs((JobState.COMPLETED, [GOOD]), known={name: f"/another/{folder}"})

    replace(embedder(ended), place=place).texts(["a"])
    replace(embedder(elsewhere), place=f"{place}er").texts(["a"])

    assert ended.ids[0].startswith(f"{name}-")
    assert elsewhere.ids[0].startswith(f"{name}-")


def test_a_job_that_another_evaluation_submits_is_waited_for(embedder: Callable[[Any], Embedder]) -> None:
    options = {"model": "demo", "weights": "", "precision": "auto", "decode": "fast", "exif": "ignore"}
    name = "evaluate-texts-" + short_hash([["a"], options])
    output = f"{embedder(Jobs()).place}/{name.removeprefix('evaluate-')}"
    jobs = Jobs(
        (JobState.COMPLETED, [GOOD]), known={name: output}, conflicts=[JobConflictError("is running")] * 3
    )

    embedder(jobs).texts(["a"])

    assert {*jobs.asked, *jobs.ids} == {name}


def test_a_conflict_that_no_submit_explains_is_raised(embedder: Callable[[Any], Embedder]) -> None:
    jobs = Jobs(conflicts=[OutputConflictError("holds another job")] * 9)

    with pytest.raises(OutputConflictError, match="holds another job"):
        embedder(jobs).texts(["a"])

    assert len(jobs.asked) == 2


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UsageError, match="file: is a file; name a folder with `output=`"):
        Embedder(lambda: pytest.fail("a job would run"), ModelOptions("demo"), str(tmp_path / "file"))


def test_items_that_failed_are_retried_by_the_next_evaluation(embedder: Callable[[Any], Embedder]) -> None:
    two = [GOOD, with_fingerprint(rows.embedded(1, 0.0, 2.0))]
    jobs = Jobs((JobState.COMPLETED_WITH_ERRORS, [GOOD, rows.failed(1)]), (JobState.COMPLETED, two))

    assert embedder(jobs).texts(["a", "b"]).ok.tolist() == [True, False]
    assert embedder(jobs).texts(["a", "b"]).ok.tolist() == [True, True]

    assert (len({*jobs.ids}), jobs.retried) == (1, 1)


def test_the_default_place_is_below_the_first_output_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLIPFLEET_OUTPUT_ROOTS", raising=False)
    assert default_place() == "clipfleet-evaluations"

    monkeypatch.setenv("CLIPFLEET_OUTPUT_ROOTS", "/data/out/,/scratch")
    assert default_place() == "/data/out/clipfleet-evaluations"
