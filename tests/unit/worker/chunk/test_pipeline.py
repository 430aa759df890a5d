"""The path of one chunk with doubles at both ends: every input becomes one row, whatever happens between."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import AvifImagePlugin, Image

from clipfleet.contract.columns import VectorType
from clipfleet.contract.heads import Activation, HeadKind
from clipfleet.contract.jobs import DecodeRoute, ErrorCode, Exif, ItemError, Job, LabelSet, Precision, Task
from clipfleet.contract.parts import PartCounts, PartIdentity
from clipfleet.contract.policies import DecisionLog
from clipfleet.contract.stores import StoreTarget
from clipfleet.errors import OutputConflictError, OutputDamagedError, OutputUnavailableError
from clipfleet.heads.files import HeadFile
from clipfleet.ledger.jobs import MAX_FAILURES, Lease
from clipfleet.ledger.memory import MemoryLedger
from clipfleet.moderation.log import read_records, record_files
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.staged import StagedReader
from clipfleet_worker.chunk import item_path
from clipfleet_worker.chunk.held_lease import HeldLease
from clipfleet_worker.chunk.item_path import ItemPath
from clipfleet_worker.chunk.job_contexts import JobContext
from clipfleet_worker.chunk.lane_pool import LanePool
from clipfleet_worker.chunk.open_items import OpenItems
from clipfleet_worker.chunk.pipeline import ChunkResult, Pipeline
from clipfleet_worker.chunk.relabelling import Relabelling
from clipfleet_worker.decode import codecs
from clipfleet_worker.decode import step as decode_step
from clipfleet_worker.decode.child_process import NoRoomError
from clipfleet_worker.decode.children import DecodeChildren, DecodeLimits
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.lock import DecodeLock
from clipfleet_worker.decode.rasters import Raster
from clipfleet_worker.encode.batcher import Batcher, BatcherStopped
from clipfleet_worker.encode.fake_encoder import COLOURS, FakeEncoder
from clipfleet_worker.failures import (
    ChunkInterrupted,
    ChunkLostError,
    ItemFailure,
    ModelMismatchError,
    WorkerShortageError,
)
from clipfleet_worker.failures import ModelUnavailableError as NoModel
from clipfleet_worker.fetch.loop import FetchLoop
from clipfleet_worker.fetch.retrying import RetryingFetcher, RetryPolicy
from clipfleet_worker.fetch.routes import Routes
from clipfleet_worker.fetch.waiting_bytes import WaitingBytes
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loading import Loading
from clipfleet_worker.pixel_spec import InputSize
from clipfleet_worker.process.counts import BusyMeter
from clipfleet_worker.score import labelling
from clipfleet_worker.score.head_cache import HeadCache
from clipfleet_worker.score.heads import DeviceHead, head_columns_of
from clipfleet_worker.score.scoring_threads import ScoringThreads
from clipfleet_worker.score.text_matrices import TextMatrices
from clipfleet_worker.stores.equal_images import EqualImagesCache
from tests.support.doubles import PATIENCE_SECONDS, InThread
from tests.support.heads import head_file
from tests.support.images import encoded
from tests.support.jobs import JOB_ID, make_claim, make_job, stage_items
from tests.support.memory_sink import MemorySink
from tests.support.policies import make_policy, moderation_job, of_label, rule
from tests.support.store_rows import LISTED_AT
from tests.support.waiting import wait_until

LABELS = tuple(COLOURS)
ITEMS = 40  # several slices, several batches
COLOUR_OF = [LABELS[number % len(LABELS)] for number in range(2 * ITEMS)]  # of the items of a bench
IS_BLUE = [colour == "blue" for colour in COLOUR_OF[:ITEMS]]
SHELVES = [f"s{number}" for number in range(ITEMS)]
ALL_OK = PartCounts(ITEMS, 0, {})
MAX_IMAGE_BYTES = 100_000
DECODE_SECONDS, FETCH_SECONDS = 20, 180
T = TypeVar("T")


def colour(name: str) -> bytes:
    return encoded(Image.new("RGB", (24, 20), COLOURS[name]), "PNG")


class Places:
    """Where images lie, by URI: bytes, or an exception, or an event that never comes."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes | BaseException] = {}
        self.asked: list[str] = []
        self.hanging = threading.Event()  # set once somebody waits for an URI of `hangs`
        self.abandoned = threading.Event()  # set once nobody waits for it any more
        self.hangs: set[str] = set()

    def read(self, uri: str) -> bytes:
        self.asked.append(uri)
        content = self.contents[uri]
        if isinstance(content, BaseException):
            raise content
        return content

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def fetch(self, uri: str) -> bytes:
        await asyncio.sleep(0)
        if uri in self.hangs:
            self.hanging.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.abandoned.set()
        return self.read(uri)


class Encoder(FakeEncoder):
    """Fails on demand, by the colours of a batch; records the texts."""

    def __init__(self) -> None:
        super().__init__("demo", embedding_dimension=128)
        self.fails: Callable[[set[tuple[int, ...]]], Exception | None] = lambda colours: None
        self.texts: list[str] = []
        self.images = 0

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        self.images += len(pixels)
        error = self.fails({tuple(colour) for colour in pixels[:, 0, 0].tolist()})
        if error is not None:
            raise error
        return super().encode_images(pixels)

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        self.texts += prompts
        return super().encode_texts(prompts)


class Steps(HeldLease):
    """Notes the steps; each outlives all that it waits for: else a long download would end the process."""

    def __init__(self) -> None:
        super().__init__(Lease(JOB_ID, "0", "token"))
        self.entered: list[str] = []
        self._left_seconds = 0.0

    def enter(
        self,
        step: str,
        limit_seconds: float,
        longest_seconds: float | None = None,
        doing: Callable[[], str] | None = None,
    ) -> None:
        assert 0 < limit_seconds <= (longest_seconds or limit_seconds)
        self.entered.append(step)
        self._left_seconds = limit_seconds
        super().enter(step, limit_seconds, longest_seconds, doing)

    def result_of(self, future: Future[T], seconds: float | None = None) -> T:
        assert seconds is not None
        self._left_seconds -= seconds
        assert self._left_seconds > 0
        return super().result_of(future, seconds)


class Bench:
    """A pipeline of real steps; places, model and sink are doubles."""

    context: JobContext  # of the last submit

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places, self.encoder, self.sink, self.lease = Places(), Encoder(), MemorySink(), Steps()
        self.ledger = MemoryLedger()
        self.load_error: Exception | None = None
        self.announces = False  # what the model wants to see, before it is loaded
        self.may_load = threading.Event()
        self.may_load.set()
        self.waiting_bytes = WaitingBytes(1 << 20)
        self.decoder = Decoder(1_000_000)
        self.children = DecodeChildren(self.decoder, DecodeLimits(DECODE_SECONDS, memory_bytes=1 << 30))
        self.decode_step = decode_step.DecodeStep(self.decoder, self.children)
        self.batcher = Batcher(8)
        routes = Routes(
            {"http": self.places.fetch, "https": self.places.fetch},
            {"file": lambda uri: self.places.read(uri)},  # a test may exchange it
            [self.places],
        )
        retrying = RetryingFetcher(routes, RetryPolicy())
        self.fetch_loop = FetchLoop(retrying, self.waiting_bytes, FETCH_SECONDS)
        self.decode_pool = LanePool(2, name="decode")
        items = ItemPath(
            routes=routes, fetch_loop=self.fetch_loop, waiting_bytes=self.waiting_bytes,
            decode_step=self.decode_step, decode_pool=self.decode_pool, decode_threads=2,
            decode_busy=BusyMeter(2), decode_lock=DecodeLock(), batcher=self.batcher,
            max_image_bytes=MAX_IMAGE_BYTES,
        )  # fmt: skip
        models = Models(("demo",), lambda *how: self.load(*how), kept=1, default_precision=Precision.FP32)
        matrices, heads = TextMatrices(self.batcher), HeadCache()
        self.pipeline = Pipeline(
            models=models, item_path=items, text_matrices=matrices, heads=heads,
            relabelling=Relabelling(
                models=models, batcher=self.batcher, scoring_threads=ScoringThreads(),
                text_matrices=matrices, heads=heads,
            ),
            open_items=OpenItems(1000), fetch_deadline_seconds=FETCH_SECONDS,
            decode_seconds=DECODE_SECONDS, ledger=self.ledger,
            equal_images=EqualImagesCache(),
        )  # fmt: skip

    def __enter__(self) -> Bench:
        self.batcher.start()
        self.fetch_loop.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.fetch_loop.stop()
        self.batcher.stop()
        self.decode_step.close()
        self.decode_pool.stop()

    def load(self, _name: str, _precision: Precision, loading: Loading) -> LoadedModel:
        if self.announces:
            loading.announce(self.encoder.pixel_spec)
        assert self.may_load.wait(PATIENCE_SECONDS)
        if self.load_error is not None:
            raise self.load_error
        return cast(LoadedModel, self.encoder)

    def submit(self, uris: Sequence[str], values: dict[str, Any] | None = None, **extra: Any) -> Job:
        """A job with these values; `extra` are columns of its source."""
        output = FolderOutput(self.folder)
        source = {"kind": "csv", "uri": "/list.csv", "extra_columns": tuple(extra)}
        job = make_job(self.folder, **{"labels": LABELS, "top_k": 2, "source": source, **(values or {})})
        stage_items(output, job, list(uris), **extra)
        self.context = JobContext(job, output, self.sink, StagedReader(output, job_id=job.job_id))
        return job

    def run(self, job: Job, lease: HeldLease | None = None, **claim: Any) -> ChunkResult:
        return self.pipeline.run(make_claim(job, **claim), self.context, lease or self.lease)

    def run_colours(self, **claim: Any) -> ChunkResult:
        return self.run(self.submit(self.colours()), **claim)

    def run_in_thread(self, uris: Sequence[str] | None = None, **claim: Any) -> InThread:
        job = self.submit(uris or self.colours())
        return InThread(lambda: self.run(job, **claim))

    def rows(self) -> list[dict[str, Any]]:
        return cast(list[dict[str, Any]], self.sink.parts[0].rows.to_pylist())

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows()]

    def colours(self, count: int = ITEMS) -> list[str]:
        """So many URIs, by turns of files and of the web, whose colours go round."""
        uris = [f"https://h.example/{n}.png" if n % 2 else f"/p/{n}.png" for n in range(count)]
        self.places.contents |= {uri: colour(name) for uri, name in zip(uris, COLOUR_OF, strict=False)}
        return uris

    def is_empty(self) -> bool:
        """Whether no fetched bytes are left."""
        return self.waiting_bytes.count == 0

    def nothing_is_left(self) -> None:
        """No part was written, and other chunks may fetch."""
        assert self.sink.parts == {}
        wait_until(self.is_empty, "the bytes are released")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as bench:
        yield bench


def test_a_blank_url_fails_with_the_item_that_has_it(bench: Bench) -> None:
    bench.run(bench.submit([*bench.colours(2), "", " ", "x.jpg"]))

    assert bench.column("error_code") == [None, None, "bad_uri", "bad_uri", "bad_uri"]
    assert bench.column("error_detail")[2:] == [
        "the URL is blank (item 2)", "the URL is blank (item 3)", "neither a URL nor an absolute path",
    ]  # fmt: skip


def test_staged_images_are_not_fetched_and_do_not_reach_the_part(bench: Bench) -> None:
    fetched = bench.colours(2)
    staged = [None, colour("red"), b"", b"<html>", b"x" * (MAX_IMAGE_BYTES + 1), None]
    uris = [fetched[0], "#1", "#2", "#3", "#4", fetched[1]]

    bench.run(bench.submit(uris, _bytes=pa.array(staged, pa.binary())))

    assert bench.column("error_code") == [None, None, "empty", "not_an_image", "too_many_bytes", None]
    assert bench.column("label")[1] == "red"
    assert bench.column("uri") == uris
    assert bench.column("content_hash")[1] == hashlib.sha256(colour("red")).hexdigest()
    assert "_bytes" not in bench.rows()[0]


class TestOfAStore:
    """Items of a job that fills a store."""

    def submit(self, bench: Bench, uris: Sequence[str], known: Sequence[bytes | None], **store: Any) -> Job:
        target = StoreTarget(**{"uri": "/store", "store_id": "1" * 32, "listed_at": LISTED_AT, **store})
        hashes = [image and hashlib.sha256(image).hexdigest() for image in known]
        columns = {name: pa.nulls(len(uris), pa.string()) for name in ("_version", "_etag", "_last_modified")}
        columns |= {"_digest": pa.array(range(len(uris))), "_content_hash": pa.array(hashes, pa.string())}
        values = {"task": Task.EMBED, "labels": (), "store": target}
        values["source"] = {"kind": "csv", "uri": "/list.csv"}
        job = bench.submit(uris, values, **columns)
        bench.ledger.submit(job)
        return job

    def test_images_that_the_store_has_are_neither_decoded_nor_encoded(self, bench: Bench) -> None:
        uris = bench.colours(4)
        contents = [cast(bytes, bench.places.contents[uri]) for uri in uris]

        result = bench.run(self.submit(bench, uris, [contents[0], contents[1], contents[3], None]))

        assert bench.column("status") == ["same", "same", "ok", "ok"]
        assert bench.column("content_hash") == [hashlib.sha256(one).hexdigest() for one in contents]
        assert bench.column("_size_bytes") == [len(one) for one in contents]
        assert bench.column("_digest") == [0, 1, 2, 3]
        assert [row["embedding"] is None for row in bench.rows()] == [True, True, False, False]
        assert result.counts == PartCounts(4, 0, {}, same=2)
        assert bench.encoder.images == 2

    def test_the_first_model_is_that_of_the_jobs_vectors(self, bench: Bench) -> None:
        job = self.submit(bench, bench.colours(2), [None, None])
        bench.run(job)

        mine = bench.encoder.fingerprint_for(job.decode, job.exif)
        assert bench.ledger.pin_model(job.job_id) == mine
        assert bench.column("model_fingerprint") == [mine, mine]

    def test_rows_of_another_precision_say_which_model_was_the_first(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = self.submit(bench, bench.colours(2), [None, None])
        bench.ledger.pin_model(job.job_id, "f" * 16)
        monkeypatch.setattr(bench.encoder, "has_made", lambda *_: True)
        bench.run(job)

        assert bench.column("model_fingerprint") == ["f" * 16] * 2

    def test_a_model_of_other_weights_writes_nothing(self, bench: Bench) -> None:
        job = self.submit(bench, bench.colours(2), [None, None])
        bench.ledger.pin_model(job.job_id, "f" * 16)

        with pytest.raises(ModelMismatchError, match="f" * 16):
            bench.run(job)
        bench.nothing_is_left()

    def test_a_chunk_that_is_given_up_has_the_columns_of_a_store(self, bench: Bench) -> None:
        job = self.submit(bench, bench.colours(2), [None, None])

        bench.run(job, failures=MAX_FAILURES)

        assert bench.column("error_code") == ["chunk_failed"] * 2
        assert bench.column("_digest") == [0, 1]


class TestAheadOfTheModel:
    """The first chunk is fetched and decoded while its model loads."""

    @pytest.fixture
    def loading(self, bench: Bench) -> Bench:
        bench.announces = True
        bench.may_load.clear()
        return bench

    @pytest.fixture
    def full(self, loading: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
        """One that may not hold decoded images."""
        monkeypatch.setattr("clipfleet_worker.models.loading.MAX_AHEAD_BYTES", 1)
        return loading

    def start(self, bench: Bench) -> InThread:
        """A chunk of remote items, whose bytes count while they wait; all are fetched."""
        call = bench.run_in_thread([uri for uri in bench.colours(2 * ITEMS) if uri.startswith("https")])
        wait_until(lambda: len(bench.places.asked) == ITEMS, "all are fetched")
        return call

    def test_images_are_ready_when_the_model_is(self, loading: Bench) -> None:
        call = self.start(loading)
        wait_until(loading.is_empty, "all are decoded")
        assert loading.lease.entered[-1] == "load model"
        assert not loading.sink.parts

        loading.may_load.set()

        assert call.result().counts == ALL_OK
        assert loading.column("label") == COLOUR_OF[1::2]

    def test_no_more_is_decoded_than_may_wait(self, full: Bench) -> None:
        call = self.start(full)
        assert full.waiting_bytes.count > 0

        full.may_load.set()

        assert call.result().counts == ALL_OK
        assert full.is_empty()

    def test_one_chunk_goes_ahead_the_others_wait(self, loading: Bench) -> None:
        job, lease = loading.submit(loading.colours()), Steps()
        first = InThread(lambda: loading.run(job))
        wait_until(lambda: len(loading.places.asked) == ITEMS, "all are fetched")
        second = InThread(lambda: loading.run(job, lease))
        wait_until(lambda: "load model" in lease.entered, "the second chunk waits")
        assert len(loading.places.asked) == ITEMS

        loading.may_load.set()

        first.result()
        second.result()
        assert len(loading.places.asked) == 2 * ITEMS

    def test_a_model_that_fails_to_load_releases_all_bytes(self, loading: Bench) -> None:
        loading.load_error = NoModel("its file is cut off")
        call = self.start(loading)

        loading.may_load.set()

        with pytest.raises(NoModel, match="cut off"):
            call.result()
        loading.nothing_is_left()

    def test_a_model_that_fails_to_load_ends_the_fetches(self, loading: Bench) -> None:
        loading.load_error = NoModel("its file is cut off")
        uri = loading.colours(2)[1]
        loading.places.hangs.add(uri)
        call = loading.run_in_thread([uri])
        assert loading.places.hanging.wait(PATIENCE_SECONDS)

        loading.may_load.set()

        with pytest.raises(NoModel, match="cut off"):
            call.result()
        assert loading.places.abandoned.wait(PATIENCE_SECONDS)

    def test_a_chunk_that_is_lost_meanwhile_ends_at_once_and_releases_its_bytes(self, full: Bench) -> None:
        call = self.start(full)
        assert full.waiting_bytes.count > 0

        full.lease.interrupt("lease lost")

        with pytest.raises(ChunkInterrupted, match="lease lost"):
            call.result()
        full.nothing_is_left()
        full.may_load.set()

    def test_a_chunk_that_has_cost_a_worker_waits_for_the_model(self, loading: Bench) -> None:
        call = loading.run_in_thread(losses=1)
        wait_until(lambda: "load model" in loading.lease.entered, "it waits")
        assert not loading.places.asked

        loading.may_load.set()

        assert call.result().counts == ALL_OK


class TestRows:
    def test_one_row_per_input_in_their_order_with_their_labels(self, bench: Bench) -> None:
        uris = bench.colours()
        result = bench.run(bench.submit(uris, shelf=SHELVES))

        assert result.counts == ALL_OK
        assert bench.column("item_index") == list(range(ITEMS))
        assert bench.column("uri") == uris
        assert bench.column("label") == COLOUR_OF[:ITEMS]
        assert bench.column("shelf") == SHELVES
        assert all(len(scores) == 2 and scores[0] > scores[1] for scores in bench.column("scores"))
        assert (set(bench.column("width")), set(bench.column("height"))) == ({24}, {20})
        assert "embedding" not in bench.rows()[0]
        assert bench.is_empty()

        expected = ["read", "load model", "encode labels", "fetch, decode, encode", "score", "write"]
        assert bench.lease.entered == expected
        assert set(result.work_seconds) == {"fetch", "decode", "encode", "write"}
        assert all(seconds >= 0 for seconds in result.work_seconds.values())

    def test_failures_of_every_step_stand_between_the_others(self, bench: Bench) -> None:
        uris = bench.colours()
        failures = {
            3: ("https://h.example/3.png", ItemFailure(ErrorCode.NOT_FOUND, "status 404"), "not_found"),
            4: ("/p/4.png", ItemFailure(ErrorCode.PATH_REFUSED, "outside"), "path_refused"),
            5: ("https://h.example/5.png", b"<html>", "not_an_image"),
            6: ("/p/6.png", b"", "empty"),
            7: ("https://h.example/7.png", colour("red")[:60], "broken_image"),
            8: ("gopher://h.example/8", b"", "scheme_refused"),
            9: ("", b"", "bad_uri"),
        }
        for number, (uri, content, _) in failures.items():
            uris[number] = uri
            bench.places.contents[uri] = content

        result = bench.run(bench.submit(uris))

        codes = {number: code for number, (_, _, code) in failures.items()}
        assert bench.column("item_index") == list(range(ITEMS))
        assert bench.column("error_code") == [codes.get(number) for number in range(ITEMS)]
        assert bench.column("status") == ["failed" if n in codes else "ok" for n in range(ITEMS)]
        assert bench.column("label") == [None if n in codes else COLOUR_OF[n] for n in range(ITEMS)]
        assert result.counts == PartCounts(ITEMS - 7, 7, dict.fromkeys(codes.values(), 1))
        assert bench.is_empty()

    def test_vectors_stand_beside_their_items(self, bench: Bench) -> None:
        bench.run(bench.submit(bench.colours(), {"labels": ()}))

        expected = bench.encoder.encode_texts(COLOUR_OF[:ITEMS])
        np.testing.assert_allclose(np.array(bench.column("embedding"), np.float32), expected, atol=1e-3)
        assert bench.column("label") == [None] * ITEMS

    def test_float32_vectors_reach_the_sink_unrounded(self, bench: Bench) -> None:
        bench.run(bench.submit(bench.colours(), {"labels": (), "vector_type": VectorType.FLOAT32}))

        expected = bench.encoder.encode_texts(COLOUR_OF[:ITEMS])
        np.testing.assert_allclose(np.array(bench.column("embedding")), expected, rtol=1e-6, atol=1e-7)
        assert np.abs(expected.astype(np.float16) - expected).max() > 1e-5

    def test_label_sets_heads_and_vectors_share_one_fetch_one_pass_and_one_call(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        heads = [
            head_file(128, 3, name="kinds"),
            head_file(128, 16, 4, name="tags", kind=HeadKind.MULTILABEL, activation=Activation.RELU),
            head_file(128, 1, name="rating", kind=HeadKind.REGRESS),
        ]
        sets = (LabelSet(name="colours", labels=LABELS), LabelSet(name="more", labels=LABELS, none=True))
        score, calls = labelling._score, []
        monkeypatch.setattr(labelling, "_score", lambda *given: (calls.append(given), score(*given))[1])
        wanted = {"label_sets": sets, "heads": [one.of_job for one in heads], "store_embeddings": True}
        job, uris = bench.submit(bench.colours(), wanted), bench.colours()
        for one in heads:
            bench.context.output.create(objects.head_file(one.of_job.sha256), one.data)

        assert bench.run(job).counts == ALL_OK

        assert sorted(bench.places.asked) == sorted(uris)
        assert (bench.encoder.images, len(calls)) == (ITEMS, 1)
        assert bench.column("label_colours") == bench.column("label_more") == COLOUR_OF[:ITEMS]
        vectors = np.array(bench.column("embedding"), np.float64)
        for one in heads:
            scores = DeviceHead.of(one, "cpu").score(torch.from_numpy(vectors))
            for name, values in zip(one.of_job.columns, head_columns_of(one.head, scores), strict=True):
                found = bench.column(name)
                if name.endswith("_score"):
                    np.testing.assert_allclose(found, values.to_numpy(), atol=5e-3)  # of float16 vectors
                else:
                    assert sum(a != b for a, b in zip(found, values.to_pylist(), strict=True)) <= 1, name

    def test_of_an_embed_job_heads_are_the_only_labels(self, bench: Bench) -> None:
        head = head_file(128, 3, name="kinds")
        job = bench.submit([*bench.colours(), "gopher://x"], {"labels": (), "heads": [head.of_job]})
        bench.context.output.create(objects.head_file(head.of_job.sha256), head.data)

        bench.run(job)

        assert all(label in head.head.labels for label in bench.column("head_kinds")[:-1])
        assert (bench.column("head_kinds")[-1], bench.column("head_kinds_score")[-1]) == (None, None)
        assert bench.column("label") == [None] * (ITEMS + 1)
        assert bench.encoder.texts == []

    @pytest.mark.parametrize(
        ("head", "content", "error", "words"),
        [
            (head_file(64, 3), None, ModelMismatchError, "takes vectors of length 64"),
            (head_file(128, 3), b"", OutputUnavailableError, "'taste' is missing"),
            (head_file(128, 3), b"x", OutputDamagedError, "is not the head 'taste' that was submitted"),
        ],
    )
    def test_a_head_that_cannot_be_used_writes_nothing(
        self, bench: Bench, head: HeadFile, content: bytes | None, error: type[Exception], words: str
    ) -> None:
        job = bench.submit(bench.colours(), {"heads": [head.of_job]})
        if content != b"":
            bench.context.output.create(objects.head_file(head.of_job.sha256), content or head.data)

        with pytest.raises(error, match=words):
            bench.run(job)

        bench.nothing_is_left()

    def test_without_a_good_item_no_text_is_encoded(self, bench: Bench) -> None:
        assert bench.run(bench.submit(["gopher://x", ""])).counts.failed == 2
        assert bench.encoder.texts == []

    def test_the_texts_are_encoded_once_for_all_chunks_also_of_equal_images(self, bench: Bench) -> None:
        job = bench.submit(bench.colours(1) * ITEMS)
        bench.run(job)
        assert bench.column("label") == [LABELS[0]] * ITEMS
        bench.sink.parts.clear()
        bench.run(job)

        assert len(bench.encoder.texts) == len(LABELS)


class TestInterruption:
    @pytest.mark.parametrize("word", ["cancelled", "lost", "the worker drains"])
    def test_amid_its_fetches_a_chunk_ends_without_a_part(self, bench: Bench, word: str) -> None:
        uris = bench.colours()
        bench.places.hangs.add(uris[1])
        call = bench.run_in_thread(uris)
        assert bench.places.hanging.wait(PATIENCE_SECONDS)
        if "drains" in word:
            bench.batcher.stop()

        bench.lease.interrupt(word)

        with pytest.raises((ChunkInterrupted, BatcherStopped)):
            call.result()
        bench.nothing_is_left()

    def test_what_is_lost_before_the_write_is_not_written(self, bench: Bench) -> None:
        class Lost(Steps):
            def confirm(self) -> None:
                raise ChunkInterrupted("lost")

        with pytest.raises(ChunkInterrupted, match="lost"):
            bench.run(bench.submit(bench.colours()), Lost())
        bench.nothing_is_left()

    def test_what_was_lost_before_the_start_fetches_nothing(self, bench: Bench) -> None:
        bench.lease.interrupt("lost")

        with pytest.raises(ChunkInterrupted):
            bench.run_colours()
        assert bench.places.asked == []


class TestSeveralLabelSets:
    WARM = LabelSet(name="warm", labels=("red", "yellow"))
    COLD = LabelSet(name="cold", labels=("blue", "cyan", "green"))

    def test_each_item_is_fetched_and_encoded_once_and_labelled_by_each(self, bench: Bench) -> None:
        uris = bench.colours(len(LABELS))
        bench.run(bench.submit(uris, {"label_sets": (self.WARM, self.COLD)}))

        assert sorted(bench.places.asked) == sorted(uris)
        rows = {LABELS[row["item_index"]]: row for row in bench.rows()}
        assert rows["red"]["label_warm"] == "red"
        assert rows["blue"]["label_cold"] == "blue"
        assert rows["cyan"]["label_cold"] == "cyan"
        for row in bench.rows():
            assert (row["label"], row["scores"]) == (row["label_warm"], row["scores_warm"])
            assert (len(row["labels_warm"]), len(row["labels_cold"])) == (2, 2)
            assert row["labels_cold"][0] == row["label_cold"]

    def test_an_item_is_labelled_by_the_set_it_names_and_without_one_not_fetched(self, bench: Bench) -> None:
        uris, groups = bench.colours(6), ["warm", "hot", "", "cold", "warm", "cold"]
        sets = {"warm": self.WARM, "cold": self.COLD}
        values = {"label_sets": tuple(sets.values()), "label_set_column": "group"}

        result = bench.run(bench.submit(uris, values, group=groups))

        assert result.counts == PartCounts(4, 2, {"bad_uri": 2})
        assert "label_warm" not in bench.rows()[0]
        assert bench.column("group") == groups
        assert bench.column("error_code") == [None, "bad_uri", "bad_uri", None, None, None]
        assert bench.column("error_detail")[1:3] == [
            "no label set is called 'hot': the job has warm, cold",
            "the item names no label set: the job has warm, cold",
        ]
        for row in bench.rows():
            known = sets[row["group"]].labels if row["group"] in sets else (None,)
            assert row["label"] in known
            assert set(row["labels"] or ()) <= set(known)
        assert sorted(bench.places.asked) == sorted([uris[0], *uris[3:]])


class TestThresholds:
    """A set with thresholds: what it accepts; the softmax of other sets of the job is as it was."""

    WARM = LabelSet(name="warm", labels=("red", "yellow"))
    COLD = LabelSet(name="cold", labels=("blue", "cyan", "green"), kind="multi", background=("red", "yellow"))

    def test_beside_a_softmax_each_set_has_its_own_decision(self, bench: Bench) -> None:
        values = {"label_sets": (self.WARM, self.COLD), "top_k": 3}
        bench.run(bench.submit(bench.colours(len(LABELS)), values))

        rows = {LABELS[row["item_index"]]: row for row in bench.rows()}
        assert "accepted" not in rows["red"] and "accepted_warm" not in rows["red"]
        assert rows["red"]["label_warm"] == rows["red"]["label"] == "red"
        assert (rows["red"]["accepted_cold"], rows["red"]["label_cold"]) == ([], None)
        assert rows["red"]["score_cold"] == rows["red"]["scores_cold"][0] < 0.5
        assert rows["blue"]["label_cold"] == rows["blue"]["accepted_cold"][0] == "blue"
        for row in rows.values():
            scores = dict(zip(row["labels_cold"], row["scores_cold"], strict=True))
            assert row["accepted_cold"] == [label for label, score in scores.items() if score >= 0.5]

    def test_an_item_has_accepted_labels_if_the_set_it_names_has_thresholds(self, bench: Bench) -> None:
        groups = ["warm", "hot", "cold", "cold"]
        values = {"label_sets": (self.WARM, self.COLD), "label_set_column": "group"}

        bench.run(bench.submit(bench.colours(4), values, group=groups))

        assert [one is None for one in bench.column("accepted")] == [True, True, False, False]
        assert not [name for name in bench.rows()[0] if name.startswith("accepted_")]
        for row in bench.rows()[2:]:
            assert row["label"] == next(iter(row["accepted"]), None)
        assert bench.column("label")[0] in self.WARM.labels

    def test_another_threshold_encodes_no_prompt_again(self, bench: Bench) -> None:
        bench.run(bench.submit(bench.colours(), {"label_sets": (self.COLD,)}))
        texts = [*bench.encoder.texts]
        before = bench.column("accepted")
        lenient = self.COLD.model_copy(update={"thresholds": {"green": 0.0}})
        bench.sink.parts.clear()

        bench.run(bench.submit(bench.colours(), {"label_sets": (lenient,)}))

        assert not all("green" in accepted for accepted in before)
        assert all("green" in accepted for accepted in bench.column("accepted"))
        assert bench.encoder.texts == texts


class TestTexts:
    VALUES: ClassVar[dict[str, Any]] = {"task": "embed_text", "text_column": "caption", "labels": ()}

    def test_every_text_becomes_a_vector_and_a_blank_one_fails(self, bench: Bench) -> None:
        texts = [f"thing {number}" for number in range(150)]
        texts[3], texts[70] = "", " \t"
        result = bench.run(bench.submit([""] * 150, self.VALUES, caption=texts))

        assert result.counts == PartCounts(148, 2, {"empty": 2})
        assert bench.column("caption") == texts
        assert set(bench.column("uri")) == {""}
        expected = FakeEncoder("demo", embedding_dimension=128).encode_texts(["thing 149"])[0]
        np.testing.assert_allclose(bench.column("embedding")[149], expected, atol=1e-3)
        assert bench.column("embedding")[3] is None
        assert bench.column("width") == bench.column("content_hash") == [None] * 150
        assert bench.places.asked == []


class TestLabelsThatFail:
    def test_a_chunk_without_its_text_matrix_fetches_no_further(self, bench: Bench) -> None:
        # Given a worker without memory for the prompts, and an item that never comes
        bench.encoder.encode_texts = Mock(side_effect=MemoryError)  # type: ignore[method-assign]
        uris = bench.colours()
        bench.places.hangs.add(uris[1])

        with pytest.raises(MemoryError):
            bench.run(bench.submit(uris))
        bench.nothing_is_left()

    def test_a_label_without_a_vector_fails_every_row_and_no_score_is_made_up(self, bench: Bench) -> None:
        encode_texts = bench.encoder.encode_texts

        def overflowing(prompts: list[str]) -> np.ndarray:
            features = encode_texts(prompts)
            features[["red" in prompt for prompt in prompts]] = np.nan
            return features

        bench.encoder.encode_texts = overflowing  # type: ignore[method-assign]
        uris = bench.colours()
        bench.places.contents[uris[1]] = ItemFailure(ErrorCode.NOT_FOUND, "gone")

        result = bench.run(bench.submit(uris))

        assert (result.counts.ok, result.counts.failed) == (0, ITEMS)
        details = {detail for detail in bench.column("error_detail") if detail != "gone"}
        assert details == {"the model gives no finite vector for the label 'red'"}
        assert bench.column("score") == bench.column("label") == [None] * ITEMS


@pytest.mark.parametrize("error", [RuntimeError("device lost"), MemoryError("device")])
def test_where_nothing_can_be_encoded_the_chunk_ends_without_a_part(bench: Bench, error: Exception) -> None:
    bench.encoder.fails = lambda colours: error

    with pytest.raises(type(error), match="device"):
        bench.run_colours()
    bench.nothing_is_left()
    bench.encoder.fails = lambda colours: None
    assert bench.run_colours().counts == ALL_OK


class Counted(bytes):
    """Content of a file."""

    in_memory: ClassVar[int] = 0

    def __init__(self, _: bytes) -> None:
        Counted.in_memory += 1

    def __del__(self) -> None:
        Counted.in_memory -= 1


def test_decoded_files_are_free_before_the_next_are_read(bench: Bench, monkeypatch: Any) -> None:
    red, together, seen = colour("red"), 4, list[int]()

    def read(_uri: str) -> Counted:
        file = Counted(red)
        seen.append(Counted.in_memory)
        return file

    monkeypatch.setattr(bench.places, "read", read)
    monkeypatch.setattr(item_path, "_BYTES_READ_AHEAD", together * len(red))

    assert bench.run(bench.submit([f"/p/{number}.png" for number in range(16)])).counts.ok == 16

    assert together <= max(seen) <= together + 1  # the last one may be on its way out


class Reader:
    """Replaces the decoder or its children: reads as they do, or raises on demand."""

    def __init__(self, decoder: Decoder) -> None:
        self._read = decoder.read
        self.fails: Callable[[bytes], BaseException | None] = lambda _: None
        self.read_files: list[bytes] = []
        self.handled: list[BaseException | None] = []  # whose tracebacks keep what had been read

    def read(self, data: bytes, input_size: InputSize, route: DecodeRoute, exif: Exif) -> Raster:
        self.read_files.append(data)
        self.handled.append(sys.exc_info()[1])
        error = self.fails(data)
        if error is not None:
            raise error
        return self._read(data, input_size, route, exif)


class Readers:
    """The process, which has no memory for what is blue, and its children."""

    BLUE = colour("blue")

    def __init__(self, bench: Bench, patch: pytest.MonkeyPatch) -> None:
        self.inside, self.outside = Reader(bench.decoder), Reader(bench.decoder)
        self.inside.fails = lambda data: MemoryError() if data == self.BLUE else None
        patch.setattr(bench.decoder, "read", self.inside.read)
        patch.setattr(bench.children, "read", self.outside.read)

    def counts(self) -> tuple[int, int]:
        """Files that were read inside and outside since the last call."""
        counts = len(self.inside.read_files), len(self.outside.read_files)
        self.inside.read_files.clear()
        self.outside.read_files.clear()
        return counts


@pytest.fixture
def readers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Readers:
    return Readers(bench, monkeypatch)


class TestWhereItIsDecoded:
    def decode(self, bench: Bench, data: bytes = colour("red"), **step: bool) -> None:
        with_options = decode_step.DecodeStep(bench.decoder, bench.children, **step)
        (with_options if step else bench.decode_step).decode(data, bench.encoder.pixel_spec, DecodeRoute.FAST)

    def test_a_chunk_without_losses_is_read_in_the_process(self, bench: Bench, readers: Readers) -> None:
        bench.places.contents = {"/p/red.png": colour("red")}
        bench.run(bench.submit(["/p/red.png"] * 20), failures=4, waits=9)

        assert readers.counts() == (20, 0)

    def test_a_suspect_is_read_outside_with_the_same_rows(self, bench: Bench, readers: Readers) -> None:
        job = bench.submit(bench.colours())
        bench.run(job, losses=1)
        rows, part = bench.rows(), bench.sink.parts.pop(0)

        assert readers.counts() == (0, ITEMS)
        assert part.counts == bench.run(job).counts
        assert bench.rows() == rows

    @pytest.mark.parametrize("code", ["crashed", "decode_timeout", "chunk_failed", "timeout"])
    def test_a_retry_of_what_did_harm_is_careful(self, bench: Bench, readers: Readers, code: str) -> None:
        uris = bench.colours(len(LABELS))
        failed = uris[LABELS.index("red")]
        bench.places.contents[failed] = ItemFailure(ErrorCode(code), "in an earlier generation")
        job = bench.submit(uris)
        bench.run(job)
        bench.places.contents[failed] = colour("red")
        readers.counts()

        assert bench.run(job, generation=1).counts.ok == len(LABELS)

        assert readers.counts() == ((1, 0) if code == "timeout" else (0, 1))

    def test_what_finds_no_memory_inside_is_tried_outside(self, bench: Bench, readers: Readers) -> None:
        assert bench.run_colours().counts == ALL_OK
        assert readers.outside.read_files == [Readers.BLUE] * sum(IS_BLUE)
        assert set(readers.outside.handled) == {None}  # what the process had read of them is free by then

    def test_what_finds_none_there_either_is_a_row(self, bench: Bench, readers: Readers) -> None:
        readers.outside.fails = lambda _: ItemFailure(ErrorCode.OUT_OF_MEMORY, "too much")

        bench.run_colours()

        assert [code == "out_of_memory" for code in bench.column("error_code")] == IS_BLUE

    def test_where_no_child_can_be_started_the_chunk_waits(self, bench: Bench, readers: Readers) -> None:
        readers.outside.fails = lambda _: NoRoomError("no process")

        with pytest.raises(MemoryError, match="no process"):
            bench.run_colours()
        bench.nothing_is_left()

    def test_a_bug_ends_the_chunk_and_frees_its_bytes(self, bench: Bench, readers: Readers) -> None:
        readers.inside.fails = lambda _: ZeroDivisionError("bug")

        with pytest.raises(ZeroDivisionError):
            bench.run_colours()
        bench.nothing_is_left()

    def test_too_little_memory_to_fit_an_image_is_a_row(self, bench: Bench, monkeypatch: Any) -> None:
        monkeypatch.setattr(decode_step, "fit", Mock(side_effect=MemoryError))

        assert bench.run_colours().counts == PartCounts(0, ITEMS, {"out_of_memory": ITEMS})

    def test_while_a_suspect_is_under_way_all_is_read_outside(self, bench: Bench, readers: Readers) -> None:
        with bench.decode_step.with_suspect():
            with bench.decode_step.with_suspect():
                self.decode(bench)
            self.decode(bench)
        self.decode(bench)

        assert readers.counts() == (1, 2)

    def test_also_while_the_model_of_the_suspect_loads(self, bench: Bench, readers: Readers) -> None:
        bench.may_load.clear()
        suspect = bench.run_in_thread(losses=1)
        wait_until(lambda: "load model" in bench.lease.entered, "the model loads")

        self.decode(bench)
        bench.may_load.set()
        suspect.result()

        assert readers.counts() == (0, 1 + ITEMS)

    def test_a_careful_operator_has_simple_formats_read_inside(self, bench: Bench, readers: Readers) -> None:
        image = Image.new("RGB", (24, 20), COLOURS["red"])
        simple = [encoded(image), encoded(image, "PNG")]
        others = [encoded(image, "JPEG", progressive=True)]
        others += [encoded(image, image_format) for image_format in ("WEBP", "GIF", "TIFF", "BMP")]

        for data in simple + others:
            self.decode(bench, data, isolate=True)

        assert (readers.inside.read_files, readers.outside.read_files) == (simple, others)

    @pytest.mark.parametrize("image_format", ["AVIF", "HEIF"])
    def test_what_video_codecs_decode_is_never_read_inside(
        self, bench: Bench, readers: Readers, image_format: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = encoded(Image.new("RGB", (24, 20)), image_format)
        self.decode(bench, data)
        assert readers.counts() == (0, 1)

        monkeypatch.setattr(codecs, "find_spec", lambda _: None)
        monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
        with pytest.raises(ItemFailure, match=f"^format_refused: {image_format}: .*; run `pip install "):
            self.decode(bench, data)
        with pytest.raises(ItemFailure, match=r"^format_refused: MP4 video is not among the formats"):
            self.decode(bench, b"\0\0\0\x18ftypisom\0\0\2\0isomiso2")
        assert readers.counts() == (0, 0)


class TestAdoption:
    COUNTS = PartCounts(1, 1, {"timeout": 1})

    def place(self, bench: Bench, job_id: str = JOB_ID, generation: int = 0) -> Job:
        """A job whose part is in place, whosever it is."""
        job = bench.submit(bench.colours())
        rows = bench.context.items(make_claim(job))
        bench.sink.write(PartIdentity(job_id, 0, generation), rows, self.COUNTS)
        return job

    @pytest.mark.parametrize("history", [{"losses": 1}, {"failures": 1}, {"waits": 1}, {"losses": 9}])
    def test_a_part_of_an_earlier_owner_is_taken_without_work(self, bench: Bench, history: Any) -> None:
        assert bench.run(self.place(bench), **history) == ChunkResult(self.COUNTS, {})
        assert bench.places.asked == []

    def test_a_part_that_comes_while_we_work_is_adopted_at_the_end(self, bench: Bench) -> None:
        assert bench.run(self.place(bench)).counts == self.COUNTS
        assert len(bench.sink.parts) == 1

    @pytest.mark.parametrize("history", [{"losses": 1}, {}])
    def test_a_part_of_another_job_or_generation_stays(self, bench: Bench, history: Any) -> None:
        for whose, error in (("other", 0), OutputConflictError), ((JOB_ID, 1), OutputUnavailableError):
            bench.sink.parts.clear()
            with pytest.raises(error):
                bench.run(self.place(bench, *whose), **history)
            assert bench.sink.parts[0].counts == self.COUNTS


class TestDecisions:
    """Of a moderation job: `red` is flagged, the others are allowed."""

    POLICY = make_policy(rule("flag", of_label("red", at_least=0.9)), labels=LABELS)

    def submit(self, bench: Bench, uris: Sequence[str], *, is_dry: bool = False, **values: Any) -> Job:
        log = None if is_dry else DecisionLog(uri=str(bench.folder))
        job = moderation_job(self.POLICY, str(bench.folder), is_dry=is_dry, decisions=log, **values)
        own = {name: getattr(job, name) for name in ("label_sets", "policy", "decisions", "top_k")}
        job = bench.submit(uris, {**own, "task": Task.CLASSIFY, "labels": ()})
        bench.context = replace(bench.context, decision_log=None if is_dry else bench.context.output)
        return job

    def records(self, bench: Bench) -> list[list[dict[str, Any]]]:
        log = bench.context.output
        return [read_records(log, file) for file in record_files(log, "20261124")]

    def test_the_rows_are_decided_recorded_and_announced(self, bench: Bench) -> None:
        uris = bench.colours(6)
        bench.places.contents[uris[5]] = b"<html>"
        result = bench.run(self.submit(bench, uris))

        expected = ["flag" if colour == "red" else "allow" for colour in COLOUR_OF[:5]] + ["undecided"]
        assert bench.column("decision") == [event.status for event in result.decisions or ()] == expected
        ids = bench.column("decision_id")
        assert [event.event_id for event in result.decisions or ()] == [f"evt-{one}" for one in ids]
        (records,) = self.records(bench)
        assert [(record["decision_id"], record["status"]) for record in records] == [
            *zip(ids, expected, strict=True)
        ]
        assert records[5]["error"]["code"] == "not_an_image"
        announced = [json.loads(event.record) for event in result.decisions or ()]
        assert announced == [
            {name: value for name, value in record.items() if name not in ("scores", "heads", "owner")}
            for record in records
        ]

    def test_a_part_of_a_worker_that_died_decides(self, bench: Bench) -> None:
        job = self.submit(bench, bench.colours(4))
        first = bench.run(job)
        for file in record_files(bench.context.output, "20261124"):  # it died before it wrote them
            bench.context.output.remove(file.name)
        bench.places.contents = dict.fromkeys(bench.places.contents, b"<html>")

        again = bench.run(job, losses=1)

        assert again.decisions == first.decisions
        assert [record["status"] for (*records,) in self.records(bench) for record in records] == [
            event.status for event in first.decisions or ()
        ]

    def test_a_retry_decides_only_what_it_runs(self, bench: Bench, monkeypatch: Any) -> None:
        uris = bench.colours(4)
        healthy, bench.places.contents[uris[2]] = bench.places.contents[uris[2]], b"<html>"
        job = self.submit(bench, uris)
        first = bench.run(job)
        bench.places.contents[uris[2]] = healthy
        monkeypatch.setattr(bench.ledger, "decided", lambda *_: 0)

        second = bench.run(job, generation=1)

        before = [event.event_id for event in first.decisions or ()]
        (event,) = second.decisions or ()
        assert event.status != "undecided"
        assert event.event_id == before[2].replace("-0-2", "-1-2")
        assert [f"evt-{one}" for one in bench.column("decision_id")] == [
            *before[:2], event.event_id, before[3],
        ]  # fmt: skip
        assert [len(records) for records in self.records(bench)] == [4, 1]
        assert bench.run(job, generation=1, losses=1).decisions == second.decisions

    @pytest.mark.parametrize("is_recorded", [True, False])
    def test_a_retry_announces_what_was_cut_off(self, bench: Bench, *, is_recorded: bool) -> None:
        """The job was cancelled after the part was written, and before the decisions were announced."""
        uris = bench.colours(4)
        healthy, bench.places.contents[uris[3]] = bench.places.contents[uris[3]], b"<html>"
        job = self.submit(bench, uris)
        first = bench.run(job)
        for file in record_files(bench.context.output, "20261124") if not is_recorded else ():
            bench.context.output.remove(file.name)
        bench.places.contents[uris[3]] = healthy

        second = bench.run(job, generation=1)

        assert second.decisions is not None
        assert second.decisions[:3] == (first.decisions or ())[:3]
        assert [event.event_id for event in second.decisions] == [
            f"evt-{one}" for one in bench.column("decision_id")
        ]
        assert [len(records) for records in self.records(bench)] == [4 if is_recorded else 3, 1]
        assert bench.run(job, generation=1, losses=1).decisions == second.decisions

    def test_a_chunk_that_is_given_up_is_undecided(self, bench: Bench) -> None:
        job = self.submit(bench, bench.colours(3))

        result = bench.run(job, failures=MAX_FAILURES)

        assert bench.column("decision") == ["undecided"] * 3
        assert [event.status for event in result.decisions or ()] == ["undecided"] * 3

    def test_a_dry_run_has_its_decisions_in_the_rows_only(self, bench: Bench) -> None:
        result = bench.run(self.submit(bench, bench.colours(3), is_dry=True))

        assert set(bench.column("decision")) == {"flag", "allow"}
        assert result.decisions is None
        assert self.records(bench) == []


class TestRetry:
    SICK = (3, 7)  # items that fail at first

    @pytest.fixture
    def job(self, bench: Bench) -> Job:
        """A job of which two items failed, for different reasons; they are well by now, and all there is."""
        uris = bench.colours()
        healthy = {uris[number]: bench.places.contents[uris[number]] for number in self.SICK}
        for uri, code in zip(healthy, (ErrorCode.SERVER_ERROR, ErrorCode.NOT_FOUND), strict=True):
            bench.places.contents[uri] = ItemFailure(code, "sick")
        job = bench.submit(uris, shelf=SHELVES)
        assert bench.run(job).counts.failed == 2
        bench.places.contents = healthy
        bench.places.asked.clear()
        return job

    def test_only_what_failed_is_run_again_once_and_the_other_rows_stay(self, bench: Bench, job: Job) -> None:
        before = bench.rows()

        for _ in range(2):  # then the part is in place
            assert bench.run(job, generation=1).counts == ALL_OK

        after = bench.rows()
        assert sorted(bench.places.asked) == sorted(after[number]["uri"] for number in self.SICK)
        assert bench.column("item_index") == list(range(ITEMS))
        assert bench.column("shelf") == SHELVES
        assert bench.column("label") == COLOUR_OF[:ITEMS]
        for number in set(range(ITEMS)) - set(self.SICK):
            assert after[number] == before[number]
        assert bench.sink.parts[0].identity.generation == 1

    def test_a_chunk_that_is_given_up_keeps_its_good_rows(self, bench: Bench, job: Job) -> None:
        assert bench.run(job, generation=1, losses=5).counts == PartCounts(ITEMS - 2, 2, {"chunk_failed": 2})
        assert bench.places.asked == []


class TestGivingUp:
    @pytest.mark.parametrize("history", [{"losses": 5}, {"failures": 5}])
    def test_an_exhausted_chunk_fails_with_a_row_for_every_input(self, bench: Bench, history: Any) -> None:
        uris = bench.colours()
        bench.load_error = AssertionError("the model must not be loaded")
        result = bench.run(bench.submit(uris), **history)

        assert result.counts == PartCounts(0, ITEMS, {"chunk_failed": ITEMS})
        assert bench.column("item_index") == list(range(ITEMS))
        assert bench.column("uri") == uris
        assert set(bench.column("error_code")) == {"chunk_failed"}
        assert "dead workers" in bench.column("error_detail")[0]
        assert bench.places.asked == []

    def test_a_chunk_that_cannot_even_be_given_up_costs_no_more_workers(self, bench: Bench) -> None:
        """Whatever kills them then is reached before a row is written: reading the items, for example."""
        job = bench.submit(bench.colours())
        assert bench.run(job, losses=9).counts.failed == ITEMS
        bench.sink.parts.clear()

        with pytest.raises(ChunkLostError, match="has cost 10 workers"):
            bench.run(job, losses=10)
        assert not bench.sink.parts

    def test_four_times_is_not_too_often(self, bench: Bench) -> None:
        assert bench.run_colours(losses=4, failures=4).counts.ok == ITEMS

    def test_a_model_that_cannot_be_loaded_is_raised_and_gives_the_rows_its_code(self, bench: Bench) -> None:
        bench.load_error = NoModel("no weights")
        job = bench.submit(bench.colours(), {"store_embeddings": True})
        with pytest.raises(NoModel):
            bench.run(job)
        assert (bench.sink.parts, bench.places.asked) == ({}, [])

        error = ItemError(ErrorCode.MODEL_UNAVAILABLE, "no weights")
        bench.pipeline.give_up(make_claim(job), bench.context, bench.lease, error)

        assert set(bench.column("error_code")) == {"model_unavailable"}
        kind = bench.sink.parts[0].rows.schema.field("embedding").type
        assert kind.list_size == 128  # the model's, from its configuration


def test_a_file_for_which_the_worker_has_no_descriptor_makes_the_chunk_wait(bench: Bench) -> None:
    uris = bench.colours()
    failure = ItemFailure(ErrorCode.INCOMPLETE_BODY, "Too many open files")
    failure.__cause__ = OSError(errno.EMFILE, "Too many open files")
    bench.places.contents[uris[0]] = failure

    with pytest.raises(WorkerShortageError, match="file descriptors"):
        bench.run(bench.submit(uris))
    assert bench.sink.parts == {}


def test_items_that_are_not_there_are_an_output_that_is_away(bench: Bench) -> None:
    job = bench.submit(bench.colours())
    for path in bench.folder.glob("_clipfleet/items-*"):
        path.unlink()
    (bench.folder / "_clipfleet" / "job.json").write_text("{}")

    with pytest.raises(OutputUnavailableError, match="staged items are missing"):
        bench.run(job)
