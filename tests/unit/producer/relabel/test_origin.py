"""Which finished jobs can be labelled again, and what the new job takes from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipfleet.contract.columns import VectorType
from clipfleet.contract.jobs import (
    DecodeRoute,
    Exif,
    Job,
    PartFormat,
    Precision,
    SourceDescription,
    StoredVectors,
    StoreVersion,
    Task,
    read_job,
)
from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import JobNotFoundError, OutputConflictError, UsageError
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.relabel.origin import Origin, origin_of, origin_of_store
from clipfleet.relabel.source import VectorSource
from clipfleet.results.part_rows import PartRows
from clipfleet.results.store_rows import store_rows
from clipfleet.results.vector_ranges import PartRanges
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import StorePlace
from clipfleet.submit.options import JobOptions, make_job
from tests.support.store_rows import NO_ADDRESSES, commit_gone, item, make_store
from tests.support.store_rows import stored_rows as store_rows_of
from tests.support.vector_outputs import (
    DIMENSION,
    FINGERPRINT,
    FINISHED_AT,
    add_stored_part,
    finish_stored,
    stored_output,
    stored_rows,
    vectors_of,
)


def found(output: FolderOutput, job_id: str | None = None) -> Origin:
    def open_ranges(job: Job, vectors: StoredVectors) -> PartRanges:
        return PartRanges(output, vectors, job.source.extra_columns)

    return origin_of(PartRows(output), open_ranges, job_id)


def origin(output: FolderOutput, sizes: tuple[int, ...] = (3, 2, 4), **values: Any) -> Origin:
    stored_output(output, sizes, **values)
    return found(output)


def test_what_the_vectors_are(output: FolderOutput) -> None:
    one = origin(output)

    assert one.vectors == StoredVectors(
        uri=output.uri,
        job_id=one.job.job_id,
        created_at=one.job.created_at,
        model_fingerprint=FINGERPRINT,
        dimension=DIMENSION,
    )
    assert (one.items, one.largest_part, one.finished_at) == (9, 4, FINISHED_AT)


@pytest.mark.parametrize("part_format", PartFormat)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_format_and_version_fits(output: FolderOutput, part_format: PartFormat, version: int) -> None:
    assert origin(output, part_format=part_format, schema_version=version).items == 9


def test_the_options_of_the_vectors_are_those_of_the_job(output: FolderOutput) -> None:
    of_job = {"precision": Precision.FP32, "decode": DecodeRoute.EXACT, "exif": Exif.APPLY}

    options = origin(output, model="local-dir:/models/mine", **of_job).described(JobOptions())

    assert options.model == "local-dir:/models/mine"
    assert {name: getattr(options, name) for name in of_job} == of_job


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("model", "demo", "is that of the vectors"),
        ("precision", Precision.FP32, "is that of the vectors"),
        ("decode", DecodeRoute.EXACT, "is that of the vectors"),
        ("url_column", "url", "is for images"),
        ("sample", 10, "is for images"),
    ],
)
def test_options_that_do_not_apply_are_refused(output: FolderOutput, name: str, value: Any, why: str) -> None:
    with pytest.raises(UsageError, match=f"^`{name}=` {why}, which are labelled again: leave it out"):
        origin(output).described(JobOptions(**{name: value}))


def test_the_output_of_the_vectors_is_refused_under_any_name(output: FolderOutput, tmp_path: Path) -> None:
    one = origin(output)
    (tmp_path / "link").symlink_to(output.uri)

    for name in (output.uri, f"{output.uri}/", f"file://{output.uri}", tmp_path / "link"):
        with pytest.raises(UsageError, match=r"holds the vectors .* choose another `output=`"):
            one.described(JobOptions(output=name, overwrite=True))
    assert one.described(JobOptions(output=f"{output.uri}-2")).output == f"{output.uri}-2"


def test_an_output_in_that_of_the_vectors_or_above_it_is_refused(output: FolderOutput) -> None:
    one = origin(output)

    for name in (f"{output.uri}/again", f"{output.uri}/data", Path(output.uri).parent):
        with pytest.raises(UsageError, match=r"`output=`, neither in it nor above it$"):
            one.described(JobOptions(output=name))
    in_s3 = replace(one, vectors=one.vectors.model_copy(update={"uri": "s3://photos/old"}))
    with pytest.raises(UsageError, match=r"^s3://photos/old holds the vectors"):
        in_s3.described(JobOptions(output="s3://photos/old/again"))
    assert in_s3.described(JobOptions(output="s3://photos/older")).output == "s3://photos/older"


def of_fingerprints(output: FolderOutput, *others: str) -> None:
    """A finished job of nine rows, and two of each further fingerprint."""
    job, sizes = stored_output(output), [3, 2, 4]
    for fingerprint in others:
        add_stored_part(output, job, len(sizes), stored_rows(job, sum(sizes), 2, fingerprint=fingerprint))
        sizes.append(2)
    finish_stored(output, job, tuple(sizes))


def test_rows_of_several_precisions_are_left_to_the_worker(output: FolderOutput) -> None:
    """With `auto`, a fleet of different devices makes them."""
    of_fingerprints(output, "0" * 16, "f" * 16)

    one = found(output)

    assert one.vectors.model_fingerprint == FINGERPRINT  # of the first row
    assert one.items == 13


def test_rows_after_many_that_failed_are_found(output: FolderOutput, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a list that is sorted by host, whose first host is down."""
    monkeypatch.setattr("clipfleet.relabel.origin._MOST_COMPARED", dict.fromkeys(PartFormat, 3))
    job = stored_output(output, (1,))
    add_stored_part(output, job, 1, stored_rows(job, 1, 4, failed=range(4)))
    add_stored_part(output, job, 2, stored_rows(job, 5, 2))
    finish_stored(output, job, (1, 4, 2))

    assert found(output).vectors.model_fingerprint == FINGERPRINT


class TestTypesOfVectors:
    def test_copies_are_of_the_type_of_the_stored_ones(self, output: FolderOutput) -> None:
        one = origin(output, vector_type=VectorType.FLOAT32)
        options = JobOptions(output="/new", store_embeddings=True)

        assert one.described(options).vector_type is VectorType.FLOAT32
        asked = options.model_copy(update={"vector_type": VectorType.FLOAT16})
        assert one.described(asked).vector_type is VectorType.FLOAT16

    def test_a_type_without_copies_is_refused(self, output: FolderOutput) -> None:
        with pytest.raises(UsageError, match=r"^`vector_type=` .* copy them with `store_embeddings=True`$"):
            origin(output).described(JobOptions(output="/new", vector_type=VectorType.FLOAT32))

    def test_in_redis_and_without_copies_they_are_float16(self, output: FolderOutput) -> None:
        one = origin(output, vector_type=VectorType.FLOAT32)

        for options in (JobOptions(store_embeddings=True), JobOptions(output="/new")):
            assert one.described(options).vector_type is VectorType.FLOAT16


class TestChunks:
    @pytest.mark.parametrize(
        ("sizes", "asked", "expected"),
        [
            ((512,) * 4, None, 512),  # as many chunks as there are parts
            ((16,) * 64, None, 128),  # at least eight chunks
            ((512,) * 100, None, 4096),
            ((512,) * 100, 1000, 1000),
            ((512,) * 100, 16, 512),  # parts are never split
        ],
    )
    def test_of_whole_parts(
        self, output: FolderOutput, sizes: tuple[int, ...], asked: int | None, expected: int
    ) -> None:
        one = origin(output, (2,))
        one = Origin(one.job, one.vectors, one.finished_at, one.ranges, sum(sizes), max(sizes))

        assert one.chunk_size(asked) == expected


class TestRefusals:
    def test_an_output_without_a_job(self, output: FolderOutput) -> None:
        with pytest.raises(JobNotFoundError, match=r"no job .* has this output: .*`clipfleet embed`"):
            found(output)

    def test_vectors_of_texts(self, output: FolderOutput) -> None:
        source = SourceDescription(kind="txt", uri="/q.txt", extra_columns=("text",))
        with pytest.raises(UsageError, match="holds vectors of texts: embed the images"):
            origin(output, task=Task.EMBED_TEXT, text_column="text", source=source)

    def test_a_job_without_vectors(self, output: FolderOutput) -> None:
        with pytest.raises(UsageError, match=r"keeps no vectors: embed its source .*`store_embeddings=True`"):
            origin(output, labels=("a", "b"))

    def test_a_job_that_has_not_finished(self, output: FolderOutput) -> None:
        job = stored_output(output)
        output.remove(objects.SUCCESS)

        with pytest.raises(UsageError, match=f"has not finished: wait .* `clipfleet watch {job.job_id}`"):
            found(output)

    def test_rows_of_more_fingerprints_than_one_model_makes(self, output: FolderOutput) -> None:
        of_fingerprints(output, "1" * 16, "2" * 16, "3" * 16)

        with pytest.raises(OutputConflictError, match="rows of 4 different models: embed its source again"):
            found(output)

    def test_rows_that_all_failed(self, output: FolderOutput) -> None:
        with pytest.raises(UsageError, match="no row has a vector: nothing to label"):
            origin(output, (1,))

    def test_another_job_than_the_one_that_is_meant(self, output: FolderOutput) -> None:
        job = stored_output(output)

        assert found(output, job.job_id).items == 9
        with pytest.raises(OutputConflictError, match=f"no longer contains job mine: it holds {job.job_id}"):
            found(output, "mine")


class TestSource:
    def test_it_has_a_row_per_chunk(self, output: FolderOutput) -> None:
        (batch,) = VectorSource(origin(output), 5).batches()

        assert batch.to_pylist() == [
            {"item_index": 0, "first_part": 0, "parts": 2, "rows": 5},
            {"item_index": 5, "first_part": 2, "parts": 1, "rows": 4},
        ]

    def test_it_is_described_by_the_job_and_its_end(self, output: FolderOutput) -> None:
        columns = ("caption", "truth")
        source = SourceDescription(kind="csv", uri="/list.csv", extra_columns=columns)
        one = origin(output, source=source)

        assert VectorSource(one, 5).description == SourceDescription(
            kind="vectors", uri=output.uri, extra_columns=columns,
            options={"job_id": one.job.job_id, "finished_at": FINISHED_AT.isoformat()},
        )  # fmt: skip
        assert vectors_of(one.job) == one.vectors


class TestStores:
    @pytest.fixture
    def place(self, tmp_path: Path) -> StorePlace:
        return make_store(tmp_path / "store", [item(name, caption=name) for name in "abc"])

    def test_what_the_vectors_are(self, place: StorePlace) -> None:
        one = origin_of_store(store_rows(place))

        assert one.vectors == StoreVersion(
            uri=place.uri, store_id=place.read().store_id, version=2,
            model_fingerprint=FINGERPRINT, dimension=4,
        )  # fmt: skip
        assert (one.items, one.largest_part, one.chunk_size(None)) == (3, 3, 3)
        assert one.described(JobOptions()).model == "demo"

    def test_another_version_is_another_source(self, place: StorePlace) -> None:
        before = VectorSource(origin_of_store(store_rows(place)), 512).description
        dataset = VectorDataset.open(place.dataset_uri(FINGERPRINT))
        dataset.replace(NO_ADDRESSES, store_rows_of([item("d", caption="d")]).to_batches(), {})

        after = VectorSource(origin_of_store(store_rows(place)), 512).description

        assert before.options == {"store_id": place.read().store_id, "version": "2"}
        assert after.options == before.options | {"version": "3"}
        assert (before.uri, before.extra_columns) == (place.uri, ("caption",))

    def test_there_is_nothing_to_label(self, place: StorePlace) -> None:
        commit_gone(
            VectorDataset.open(place.dataset_uri(FINGERPRINT)),
            [item(name, caption=name) for name in "abc"],
        )

        with pytest.raises(UsageError, match="no row has a vector"):
            origin_of_store(store_rows(place))

    @pytest.mark.parametrize("below", ["", "_jobs/mine"])
    def test_the_output_must_not_be_in_the_store(self, place: StorePlace, below: str) -> None:
        options = JobOptions(output=str(Path(place.uri, below)))

        with pytest.raises(UsageError, match="holds the vectors that are labelled again"):
            origin_of_store(store_rows(place)).described(options)

    def test_the_job_that_labels_them_is_of_version_5(self, place: StorePlace, tmp_path: Path) -> None:
        one = origin_of_store(store_rows(place))
        options = JobOptions(output=str(tmp_path / "out"))
        labels = (LabelSet(labels=("cat", "dog")),)

        job = make_job(
            VectorSource(one, 512), one.described(options), Task.CLASSIFY, labels, vectors=one.vectors
        )

        assert job.schema_version == 5
        assert read_job(job.model_dump_json()) == job
