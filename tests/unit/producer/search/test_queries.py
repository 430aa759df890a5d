"""The vector of a query: jobs of one item, found again, with the model that made the vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clipfleet.contract.jobs import Lane, Precision
from clipfleet.errors import JobConflictError, JobNotFoundError, ResultsExpiredError, UsageError
from clipfleet.evaluation.vectors import EmbeddingError, ModelOptions
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from clipfleet.search.queries import (
    MadeBy,
    QueryEncoder,
    image_query,
    made_by,
    text_query,
    vector_of_item,
)
from tests.support.stored_vectors import place_vectors, unit_vectors, vector_rows

MADE = MadeBy(ModelOptions("demo"), ("of auto", "of bf16"))


class Jobs:
    """A client whose jobs leave the row of each precision."""

    def __init__(self, **fingerprints: str) -> None:
        self.fingerprints = {"auto": "of auto", **fingerprints}
        self.failing: set[str] = set()
        self.rows_of: dict[str, list[dict[str, Any]]] = {}
        self.asked: list[tuple[Any, Any]] = []
        self.retried: list[str] = []
        self.raising: list[Exception] = []

    def embed(self, source: Any, *, options: Any) -> Any:
        if self.raising:
            raise self.raising.pop(0)
        self.asked.append((source[0], options))
        had_ended = options.job_id in self.rows_of
        precision = str(options.precision)
        is_ok = precision in self.fingerprints and precision not in self.failing
        row = {"status": "ok", "model_fingerprint": self.fingerprints.get(precision), "embedding": [0.6, 0.8]}
        failed = {"status": "failed", "error_code": "not_found", "error_detail": "no such file"}
        self.rows_of[options.job_id] = [row if is_ok else failed]
        return SimpleNamespace(
            job_id=options.job_id, had_ended=had_ended, results=lambda: self.results(options.job_id),
            retry=lambda: self.retried.append(options.job_id),
        )  # fmt: skip

    embed_text = embed

    def results(self, job_id: str) -> Iterator[dict[str, Any]]:
        return iter(self.rows_of[job_id])

    @property
    def ids(self) -> list[str]:
        return [options.job_id for _, options in self.asked]


def encoder(jobs: Jobs) -> QueryEncoder:
    client: Any = jobs
    status: Any = SimpleNamespace(state="failed", reason="no model")
    return QueryEncoder(lambda: client, lambda job: status)


def test_a_text_is_a_job_of_one_item_in_the_high_lane() -> None:
    jobs = Jobs()

    vector = encoder(jobs).vector(text_query("a red car"), MADE)

    np.testing.assert_allclose(vector, [0.6, 0.8])
    ((item, options),) = jobs.asked
    assert (item, options.lane, options.model, options.output) == ("a red car", Lane.HIGH, "demo", None)


def test_the_same_query_has_the_same_job_and_others_have_others() -> None:
    jobs = Jobs()
    for text in ("a red car", "a red car", "a blue car"):
        encoder(jobs).vector(text_query(text), MADE)

    first, second, other = jobs.ids
    assert first == second != other
    assert jobs.retried == [first]  # in case it had failed


def test_what_is_at_an_address_is_embedded_each_time() -> None:
    jobs = Jobs()
    for _ in range(2):
        encoder(jobs).vector(image_query("https://images.example/1.jpg"), MADE)

    assert len({*jobs.ids}) == 2
    assert jobs.asked[0][0] == {"url": "https://images.example/1.jpg"}


def test_a_file_is_read_here(tmp_path: Path) -> None:
    jobs = Jobs()
    (tmp_path / "a.jpg").write_bytes(b"image")

    encoder(jobs).vector(image_query(str(tmp_path / "a.jpg")), MADE)

    assert jobs.asked[0][0] == {"bytes": b"image"}
    with pytest.raises(UsageError, match=r"b\.jpg: No such file"):
        image_query(str(tmp_path / "b.jpg"))


@pytest.mark.parametrize("error", [JobConflictError("other"), ResultsExpiredError("expired")])
def test_an_earlier_job_that_does_not_fit_is_left_alone(error: Exception) -> None:
    jobs = Jobs()
    jobs.raising = [error]

    encoder(jobs).vector(text_query("a red car"), MADE)

    assert len(jobs.ids[0].split("-")) == 3


def test_workers_that_take_another_precision_are_asked_for_that_of_the_vectors() -> None:
    jobs = Jobs(auto="of fp32", fp32="of fp32", bf16="of bf16")

    encoder(jobs).vector(text_query("a red car"), MADE)

    assert [options.precision for _, options in jobs.asked] == [
        Precision.AUTO, Precision.FP32, Precision.BF16,
    ]  # fmt: skip


def test_a_precision_that_workers_do_not_have_is_passed_over() -> None:
    jobs = Jobs(auto="of fp32", bf16="of bf16")

    encoder(jobs).vector(text_query("a red car"), MADE)

    assert len(jobs.asked) == 3


@pytest.mark.parametrize(("precision", "asked"), [(Precision.AUTO, 4), (Precision.BF16, 1)])
def test_another_model_is_refused(precision: Precision, asked: int) -> None:
    jobs = Jobs(**{str(one): "other" for one in Precision})
    made = MadeBy(ModelOptions("demo", precision), ("of auto",))

    with pytest.raises(UsageError, match="the workers' demo has not made these vectors"):
        encoder(jobs).vector(text_query("a red car"), made)
    assert len(jobs.asked) == asked


def test_a_query_that_fails() -> None:
    jobs = Jobs()
    jobs.failing = {"auto"}

    with pytest.raises(UsageError, match="'a red car' cannot be embedded: not_found: no such file"):
        encoder(jobs).vector(text_query("a red car"), MADE)


def test_a_job_without_rows() -> None:
    jobs = Jobs()
    query = encoder(jobs)
    jobs.results = lambda job_id: iter(())  # type: ignore[method-assign]  # of this test

    with pytest.raises(EmbeddingError, match="which embeds the query, is failed: no model"):
        query.vector(text_query("a red car"), MADE)


def test_a_blank_text() -> None:
    with pytest.raises(UsageError, match="is empty"):
        text_query(" ")


class TestOfAnOutput:
    @pytest.fixture
    def reader(self, output: FolderOutput) -> PartRows:
        vectors = unit_vectors(1, 5, 4)
        tables = [vector_rows(0, vectors[:3], "f" * 16, failed={1}), vector_rows(3, vectors[3:], "g" * 16)]
        place_vectors(output, tables, model="demo", precision="auto")
        return PartRows(output)

    def test_what_made_its_vectors(self, reader: PartRows) -> None:
        assert made_by(reader) == MadeBy(ModelOptions("demo"), ("f" * 16, "g" * 16))

    def test_the_vector_of_an_item(self, reader: PartRows) -> None:
        expected = unit_vectors(1, 5, 4)[3]

        for name in ("item-00000003", "3", "https://images.example/03/00000003.jpg"):
            np.testing.assert_allclose(vector_of_item(reader, name), expected, atol=1e-3)

    def test_an_item_without_a_vector(self, reader: PartRows) -> None:
        with pytest.raises(UsageError, match="item '1' has no vector"):
            vector_of_item(reader, "1")
        with pytest.raises(JobNotFoundError, match="no row of item 'x'"):
            vector_of_item(reader, "x")

    def test_an_output_without_vectors(self, output: FolderOutput) -> None:
        place_vectors(output, [vector_rows(0, unit_vectors(1, 2, 4), "f" * 16, failed=range(2))])

        with pytest.raises(UsageError, match="no row has a vector"):
            made_by(PartRows(output))
