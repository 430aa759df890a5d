"""A chunk of stored vectors: rows keep what they had but for their labels; no image is touched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.contract.columns import VectorType
from clipfleet.contract.heads import HeadInput
from clipfleet.contract.jobs import (
    DecodeRoute,
    ErrorCode,
    Exif,
    ItemError,
    Job,
    LabelSet,
    Lane,
    Precision,
    Task,
)
from clipfleet.contract.parts import PartCounts, part_schema, range_batch
from clipfleet.errors import OutputDamagedError
from clipfleet.ledger.jobs import Lease
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.staged import StagedReader
from clipfleet.parts.parquet import OpenParquetPart
from clipfleet.results.vector_ranges import PartRanges
from clipfleet.submit.staging import Stager
from clipfleet_worker.chunk.held_lease import HeldLease
from clipfleet_worker.chunk.item_path import ItemPath
from clipfleet_worker.chunk.job_contexts import JobContext
from clipfleet_worker.chunk.meter import StepsBusy
from clipfleet_worker.chunk.open_items import OpenItems
from clipfleet_worker.chunk.pipeline import ChunkResult, Pipeline
from clipfleet_worker.chunk.relabelling import Relabelling
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.encode.fake_encoder import COLOURS, FakeEncoder
from clipfleet_worker.failures import ChunkInterrupted, ModelMismatchError, ModelUnavailableError
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.process.counts import BusyMeter
from clipfleet_worker.score.head_cache import HeadCache
from clipfleet_worker.score.scoring_threads import ScoringThreads
from clipfleet_worker.score.text_matrices import TextMatrices
from clipfleet_worker.stores.equal_images import EqualImagesCache
from tests.support.heads import head_file
from tests.support.jobs import JOB_ID, make_claim, make_job
from tests.support.memory_sink import MemorySink
from tests.support.recording_ledger import RecordingLedger
from tests.support.stored_vectors import fingerprint_of, place_vectors, stored_vectors, vector_rows

LABELS = tuple(COLOURS)
ITEMS, PART_ROWS, DIMENSION = 40, 16, 32
COLOUR_OF = [LABELS[number % len(LABELS)] for number in range(ITEMS)]
SHELVES = [f"s{number}" for number in range(ITEMS)]
GIVEN_UP = ItemError(ErrorCode.CHUNK_FAILED, "given up")


class Encoder(FakeEncoder):
    """Encodes texts only; those in `without_vector` have no direction."""

    def __init__(self) -> None:
        super().__init__("demo", embedding_dimension=DIMENSION)
        self.without_vector: set[str] = set()
        self.other_precision = ""  # the fingerprint of its rows in another precision

    def has_made(self, fingerprint: str, route: DecodeRoute, exif: Exif) -> bool:
        return super().has_made(fingerprint, route, exif) or fingerprint == self.other_precision

    def begin_images(self, pixels: np.ndarray) -> Any:
        raise AssertionError("an image was encoded")

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        found = super().encode_texts(prompts)
        found[[prompt in self.without_vector for prompt in prompts]] = np.nan
        return found


class Bench:
    """A pipeline whose way for images is a double that must not be used, and a finished job with vectors."""

    def __init__(self, folder: Path) -> None:
        self.origin, self.output = FolderOutput(folder / "origin"), FolderOutput(folder / "output")
        self.encoder, self.sink = Encoder(), MemorySink()
        self.lease = HeldLease(Lease(JOB_ID, "0", "token"))
        self.batcher, self.open_items = Batcher(8), OpenItems(4096)
        self.load_error: Exception | None = None
        self.vectors = self.encoder.encode_texts([f"a {name} square" for name in COLOUR_OF])
        models = Models(("demo",), lambda *_: self.load(), kept=1, default_precision=Precision.FP32)
        matrices, heads = TextMatrices(self.batcher), HeadCache()
        items = Mock(spec=ItemPath, batcher=self.batcher)
        items.busy.side_effect = lambda: StepsBusy(BusyMeter(2).read(), self.batcher.busy.read())
        items.start.side_effect = items.handling.side_effect = AssertionError("an image was fetched")
        self.pipeline = Pipeline(
            models=models, item_path=items, text_matrices=matrices, heads=heads,
            relabelling=Relabelling(
                models=models, batcher=self.batcher, scoring_threads=ScoringThreads(),
                text_matrices=matrices, heads=heads,
            ),
            open_items=self.open_items, fetch_deadline_seconds=1, decode_seconds=1, ledger=RecordingLedger(),
            equal_images=EqualImagesCache(),
        )  # fmt: skip

    def load(self) -> LoadedModel:
        if self.load_error is not None:
            raise self.load_error
        return cast(LoadedModel, self.encoder)

    def submit(
        self,
        values: dict[str, Any] | None = None,
        *,
        failed: tuple[int, ...] = (),
        fingerprint: str = "",
        named_fingerprint: str = "",
        vector_type: VectorType = VectorType.FLOAT16,
        **extra: list[str | None],
    ) -> Job:
        """Place the earlier job, and stage the one that labels its vectors, as one chunk."""
        columns = {"shelf": SHELVES, **extra}
        fingerprint = fingerprint or fingerprint_of(self.encoder)
        source = {"kind": "csv", "uri": "/list.csv", "extra_columns": tuple(columns)}
        earlier = self.place_earlier(failed, fingerprint, vector_type, columns)
        about = stored_vectors(self.origin, earlier, named_fingerprint or fingerprint, DIMENSION)
        defaults = {"labels": LABELS, "top_k": 2, "vectors": about, "source": source, "task": Task.CLASSIFY}
        job = make_job(self.output.uri, **{**defaults, **(values or {})})
        ranges = PartRanges(self.origin, about, tuple(columns))
        (staged,) = Stager(self.output, job.job_id, 1).stage([range_batch(list(ranges.ranges(4096)))])
        assert staged.chunks == 1
        reader = StagedReader(self.output, job_id=job.job_id)
        self.context = JobContext(job, self.output, self.sink, reader, lambda: ranges)
        return job

    def place_earlier(
        self,
        failed: tuple[int, ...] = (),
        fingerprint: str = "",
        vector_type: VectorType = VectorType.FLOAT16,
        columns: Mapping[str, list[str | None]] = {"shelf": SHELVES},
    ) -> Job:
        """Place the earlier job with the present vectors."""
        fingerprint = fingerprint or fingerprint_of(self.encoder)
        tables = [
            vector_rows(
                first, self.vectors[first : first + PART_ROWS], fingerprint, failed=failed,
                vector_type=vector_type,
                **{name: pa.array(each[first : first + PART_ROWS]) for name, each in columns.items()},
            )
            for first in range(0, ITEMS, PART_ROWS)
        ]  # fmt: skip
        source = {"kind": "csv", "uri": "/list.csv", "extra_columns": tuple(columns)}
        return place_vectors(self.origin, tables, source=source, vector_type=vector_type)

    def run(self, job: Job, **claim: Any) -> ChunkResult:
        return self.pipeline.run(make_claim(job, **claim), self.context, self.lease)

    def run_new(self, values: dict[str, Any] | None = None, **options: Any) -> ChunkResult:
        return self.run(self.submit(values, **options))

    def rows(self) -> pa.Table:
        return self.sink.parts[0].rows

    def column(self, name: str) -> list[Any]:
        return cast(list[Any], self.rows()[name].to_pylist())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    bench.batcher.start()
    yield bench
    bench.batcher.stop()


class TestRows:
    def test_they_keep_what_they_had_and_get_labels(self, bench: Bench) -> None:
        result = bench.run_new()

        assert result.counts == PartCounts(ITEMS, 0, {})
        assert bench.rows().schema == part_schema(None, [pa.field("shelf", pa.string())])
        assert bench.column("item_index") == list(range(ITEMS))
        assert bench.column("item_id")[7] == "item-00000007"
        assert bench.column("uri")[7] == "https://images.example/07/00000007.jpg"
        assert bench.column("label") == COLOUR_OF
        assert bench.column("shelf") == SHELVES
        assert bench.column("width")[:2] == [640, 641]
        assert set(bench.column("model_fingerprint")) == {fingerprint_of(bench.encoder)}
        assert all(len(one) == 64 for one in bench.column("content_hash"))
        assert set(result.work_seconds) == {"write"}

    def test_failed_rows_stay_failed_with_their_errors(self, bench: Bench) -> None:
        result = bench.run_new(failed=(3, 20))

        assert result.counts == PartCounts(ITEMS - 2, 2, {"not_found": 2})
        for index in (3, 20):
            row = bench.rows().slice(index, 1).to_pylist()[0]
            assert (row["status"], row["error_detail"]) == ("failed", "HTTP status 404")
            assert {row[name] for name in ("label", "score", "labels", "scores", "model_fingerprint")} == {
                None
            }
        assert bench.column("label")[4:20] == COLOUR_OF[4:20]

    def test_a_chunk_without_any_vector_is_all_failed_rows(self, bench: Bench) -> None:
        result = bench.run_new(failed=tuple(range(ITEMS)))

        assert result.counts == PartCounts(0, ITEMS, {"not_found": ITEMS})
        assert bench.column("label") == [None] * ITEMS

    def test_a_vector_without_direction_is_a_failed_row(self, bench: Bench) -> None:
        bench.vectors[5], bench.vectors[6, 3], bench.vectors[21, 0] = 0, np.nan, np.inf

        result = bench.run_new()

        assert result.counts == PartCounts(ITEMS - 3, 3, {"crashed": 3})
        assert [n for n, status in enumerate(bench.column("status")) if status == "failed"] == [5, 6, 21]
        assert "finite" in bench.column("error_detail")[5]
        assert bench.column("model_fingerprint")[5] is None
        assert bench.column("label")[7:21] == COLOUR_OF[7:21]

    def test_vectors_are_normalised_again(self, bench: Bench) -> None:
        bench.run_new()
        scores = bench.column("scores")
        bench.sink.parts.clear()
        bench.vectors *= 3

        for folder in (bench.origin, bench.output):
            shutil.rmtree(folder.uri)

        bench.run(bench.submit())

        np.testing.assert_allclose(bench.column("scores"), scores, atol=1e-3)

    @pytest.mark.parametrize("stored", list(VectorType))
    @pytest.mark.parametrize("wanted", list(VectorType))
    def test_vectors_are_copied_on_demand(self, bench: Bench, stored: VectorType, wanted: VectorType) -> None:
        values = {"store_embeddings": True, "vector_type": wanted}

        bench.run_new(values, failed=(2, 39), vector_type=stored)

        column = bench.rows()["embedding"].combine_chunks()
        number = pa.float16() if wanted is VectorType.FLOAT16 else pa.float32()
        assert column.type == pa.list_(number, DIMENSION)
        assert [n for n, there in enumerate(column.is_valid().to_pylist()) if not there] == [2, 39]
        np.testing.assert_allclose(column[38].as_py(), bench.vectors[38], atol=1e-3)


class TestLabelSets:
    def test_an_item_gets_the_labels_of_the_set_that_it_names(self, bench: Bench) -> None:
        warm, cold = ("red", "yellow"), ("blue", "cyan")
        sets = (LabelSet(name="warm", labels=warm), LabelSet(name="cold", labels=cold))
        kinds = ["warm" if number % 2 else "cold" for number in range(ITEMS)]
        kinds[1], kinds[2] = "hot", None  # type: ignore[call-overload]

        bench.run_new({"label_sets": sets, "labels": (), "label_set_column": "kind"}, kind=kinds, failed=(4,))

        labels = bench.column("label")
        assert {*labels[3::2]} <= {*warm}
        assert {*labels[6::2]} <= {*cold}
        assert bench.column("error_code")[:6] == [None, "bad_uri", "bad_uri", None, "not_found", None]
        assert bench.column("error_detail")[1] == "no label set is called 'hot': the job has warm, cold"

    def test_a_label_without_a_vector_fails_all_rows_that_were_ok(self, bench: Bench) -> None:
        bench.encoder.without_vector = {"a photo of a red"}

        bench.run_new(failed=(1,))

        codes = bench.column("error_code")
        assert codes[1] == "not_found"
        assert {*codes[:1], *codes[2:]} == {"crashed"}


@pytest.mark.parametrize("lane", list(Lane))
def test_on_a_gpu_the_products_are_in_the_lane_of_the_job(bench: Bench, lane: Lane) -> None:
    """Else a bulk job would keep images and labels of others from the device."""
    bench.encoder.device = "cpu:0"  # stands in for one that is not the CPU
    call, lanes = bench.batcher.call, []
    bench.batcher.call = lambda work, lane: (lanes.append(lane), call(work, lane))[1]  # type: ignore[method-assign]

    bench.run_new({"lane": lane})

    assert set(lanes) == {lane}


class TestHeads:
    def test_a_head_scores_the_vectors_beside_the_labels_or_alone(self, bench: Bench) -> None:
        file = head_file(DIMENSION, 3)
        bench.output.create(objects.head_file(file.of_job.sha256), file.data)

        bench.run_new({"heads": (file.of_job,), "labels": (), "label_sets": ()}, failed=(2,))

        scores = bench.vectors @ file.arrays()["0.weight"].T + file.arrays()["0.bias"]
        best = scores.argmax(axis=1)
        expected = [f"kind {number}" for number in best.tolist()]
        assert bench.column("head_taste") == [*expected[:2], None, *expected[3:]]
        assert bench.column("label") == [None] * ITEMS

    def test_one_of_another_model_is_refused(self, bench: Bench) -> None:
        taken = HeadInput(dim=DIMENSION, model="demo", fingerprint="beef" * 4)
        file = head_file(DIMENSION, 3, input=taken)
        bench.output.create(objects.head_file(file.of_job.sha256), file.data)

        with pytest.raises(ModelMismatchError, match="beef"):
            bench.run_new({"heads": (file.of_job,)})


class TestWhoseVectors:
    def test_a_row_of_another_fingerprint_is_refused(self, bench: Bench) -> None:
        job = bench.submit(fingerprint="beef", named_fingerprint=fingerprint_of(bench.encoder))

        with pytest.raises(ModelMismatchError, match="fingerprint beef"):
            bench.run(job)

        assert not bench.sink.parts

    def test_rows_of_other_precisions_keep_their_fingerprints(self, bench: Bench) -> None:
        bench.encoder.other_precision = "b" * 16
        job = bench.submit(fingerprint="b" * 16, named_fingerprint=fingerprint_of(bench.encoder), failed=(3,))

        assert bench.run(job).counts == PartCounts(ITEMS - 1, 1, {"not_found": 1})

        assert bench.column("model_fingerprint")[2:5] == ["b" * 16, None, "b" * 16]

    def test_vectors_of_another_model_are_refused(self, bench: Bench) -> None:
        job = bench.submit(fingerprint="beef")

        with pytest.raises(ModelMismatchError, match=r"beef.*demo"):
            bench.run(job)

        assert not bench.sink.parts

    def test_another_route_is_another_model(self, bench: Bench) -> None:
        job = bench.submit({"decode": DecodeRoute.EXACT})

        with pytest.raises(ModelMismatchError):
            bench.run(job)


class TestEnds:
    def test_a_retry_keeps_ok_rows_and_replaces_failed_ones(self, bench: Bench) -> None:
        job = bench.submit(failed=(3,))
        bench.run(job)
        before = bench.rows().to_pylist()
        # A retry of the earlier job has brought the item, and all vectors differ.
        shutil.rmtree(bench.origin.uri)
        bench.vectors = np.roll(bench.vectors, 1, axis=0)
        bench.place_earlier()

        result = bench.run(job, generation=1)

        assert result.ran == PartCounts(1, 0, {})
        after = bench.rows().to_pylist()
        assert (after[3]["status"], after[3]["label"]) == ("ok", COLOUR_OF[2])
        assert [*after[:3], *after[4:]] == [*before[:3], *before[4:]]

    def test_a_part_in_place_is_adopted(self, bench: Bench) -> None:
        job = bench.submit()
        bench.run(job)
        bench.load_error = AssertionError("it is not loaded")

        assert bench.run(job, losses=1).counts == PartCounts(ITEMS, 0, {})

    def test_a_chunk_that_has_cost_a_worker_is_labelled_as_any(self, bench: Bench) -> None:
        assert bench.run(bench.submit(), losses=1).counts == PartCounts(ITEMS, 0, {})

    def test_a_chunk_that_is_given_up_has_a_failed_row_for_every_item(self, bench: Bench) -> None:
        job = bench.submit(failed=(3,))

        result = bench.pipeline.give_up(make_claim(job), bench.context, bench.lease, GIVEN_UP)

        assert result.counts == PartCounts(0, ITEMS, {"not_found": 1, "chunk_failed": ITEMS - 1})
        assert bench.column("item_index") == list(range(ITEMS))
        assert bench.column("shelf") == SHELVES

    def test_no_vector_is_read_to_give_up(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reading them may be what has cost the workers."""
        job, read, asked = bench.submit({"store_embeddings": True}, failed=(3,)), OpenParquetPart.batches, []
        monkeypatch.setattr(
            OpenParquetPart, "batches", lambda part, columns: asked.extend(columns) or read(part, columns)
        )

        result = bench.run(job, losses=5)

        assert result.counts == PartCounts(0, ITEMS, {"not_found": 1, "chunk_failed": ITEMS - 1})
        assert bench.rows()["embedding"].null_count == ITEMS
        assert "item_index" in asked and "embedding" not in asked

    def test_vectors_that_stay_damaged_are_failed_rows(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At last: the file system may be what is damaged, and other chunks are labelled all the same."""
        job, read = bench.submit(failed=(3,)), OpenParquetPart.batches

        def batches(part: OpenParquetPart, columns: list[str]) -> Iterator[pa.RecordBatch]:
            if "embedding" in columns:
                raise pa.ArrowInvalid("corrupt page")
            return read(part, columns)

        monkeypatch.setattr(OpenParquetPart, "batches", batches)

        with pytest.raises(OutputDamagedError, match="corrupt page"):
            bench.run(job, failures=3)
        result = bench.run(job, failures=4)

        assert result.counts == PartCounts(0, ITEMS, {"not_found": 1, "chunk_failed": ITEMS - 1})
        assert "corrupt page" in bench.column("error_detail")[0]
        assert bench.column("shelf") == SHELVES

    def test_a_part_that_stays_damaged_as_a_whole_is_raised(self, bench: Bench) -> None:
        job = bench.submit()
        bench.origin.replace(objects.LAYOUT.part(0), b"x")

        with pytest.raises(OutputDamagedError, match="is damaged: remove it, run `clipfleet retry"):
            bench.run(job, failures=4)
        assert not bench.sink.parts

    def test_a_model_that_cannot_be_loaded_is_no_fault_of_the_rows(self, bench: Bench) -> None:
        bench.load_error = ModelUnavailableError("no weights")

        with pytest.raises(ModelUnavailableError):
            bench.run_new()

        assert not bench.sink.parts

    def test_an_interrupted_chunk_writes_nothing(self, bench: Bench) -> None:
        job = bench.submit()
        bench.lease.interrupt("lease lost")

        with pytest.raises(ChunkInterrupted):
            bench.run(job)

        assert not bench.sink.parts


def test_several_chunks_fit_into_a_worker_at_a_time(bench: Bench) -> None:
    """A chunk of 4,096 vectors must not keep its worker from the next one."""
    bench.open_items.add(4096)
    has_room = []
    with pytest.MonkeyPatch.context() as patch:
        for kind, name in (
            (PartRanges, "read"),
            (Relabelling, "run"),
        ):  # other chunks are read meanwhile, too
            call = getattr(kind, name)
            patch.setattr(
                kind,
                name,
                lambda *given, call=call, **named: (
                    has_room.append(bench.open_items.has_room_in_all_lanes) or call(*given, **named)
                ),
            )

        bench.run_new({"chunk_size": 4096})

    assert has_room == [True, True]
    assert bench.open_items.count == 4096
