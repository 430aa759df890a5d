"""What a backend has to prove before its vectors become rows, with backends that are wrong in all ways."""

from __future__ import annotations

import gc
import logging
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import SecretStr
from safetensors.numpy import load_file

from clipfleet.contract.jobs import DEMO_MODEL, Lane, Precision
from clipfleet_worker.assembly.device import DeviceSetUp
from clipfleet_worker.doctor import Finding, Level
from clipfleet_worker.doctor.model_check import model_findings
from clipfleet_worker.encode.backends import Backend, MakeBackend, Towers
from clipfleet_worker.encode.backends.certificate import GRAPH, PLAIN, Canaries, Certificate, Way
from clipfleet_worker.encode.backends.cuda_backend import CudaBackend
from clipfleet_worker.encode.backends.torch_backend import TorchBackend
from clipfleet_worker.encode.batcher import Batcher, BatcherStopped
from clipfleet_worker.encode.batches import ItemSlice
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.encode.kept_arrays import cache_folder, keep
from clipfleet_worker.failures import ModelUnavailableError
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.canary_watch import CanaryWatch, DeviceBroken
from clipfleet_worker.models.files import ModelFiles, fetch_files
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.models.loading import Loading
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.process.counts import BusyMeter
from clipfleet_worker.settings import WorkerSettings
from tests.support.demo_model import altered_demo
from tests.support.doubles import PATIENCE_SECONDS, Clock
from tests.support.failing import failing
from tests.support.fake_device import FakeDevice
from tests.support.reference import cosines
from tests.support.waiting import wait_until
from tests.unit.worker.models.test_loaded import TinyModule, tokenizer

BATCH = 9
Spoil = Callable[[torch.Tensor], torch.Tensor]


class Ticks:
    """A clock that goes by one second per look, and by what the device takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture(autouse=True)
def _own_cache_and_short_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("clipfleet_worker.encode.backends.certificate._TIMED_BATCHES", 3)
    monkeypatch.setattr("clipfleet_worker.process.device._cpu_has_bf16", lambda: True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    ticks = Ticks()
    monkeypatch.setattr("clipfleet_worker.encode.backends.certificate.perf_counter", ticks)
    return ticks


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    batcher = Batcher(BATCH)
    batcher.start()
    yield batcher
    batcher.stop()


class Gpu:
    """A device whose passes take time, by a clock, and whose graphs may give something else."""

    def __init__(self, clock: Ticks, *, graph_seconds: float = 0.5, spoil: Spoil | None = None) -> None:
        self.device = FakeDevice()
        self.device.before_run = self.before_run
        self.device.replayed = self._replayed
        self.spoil: Spoil = spoil or (lambda features: features)
        self._clock = clock
        self._graph_seconds = graph_seconds
        self._backends: list[CudaBackend] = []

    def before_run(self, work: object) -> None:
        self._clock.now += 1.0

    def _replayed(self, features: torch.Tensor) -> torch.Tensor:
        self._clock.now += self._graph_seconds - 1.0
        return self.spoil(features)

    def __call__(self, towers: Towers, _: str) -> Backend:
        self._backends.append(CudaBackend(towers, self.device, BATCH))
        return self._backends[-1]

    def break_down(self) -> None:
        """Plain passes are wrong, too."""
        self.spoil = rotated
        for backend in self._backends:
            forward = backend._forward_images
            backend._forward_images = partial(lambda forward, rows: rotated(forward(rows)), forward)


def loaded(make_backend: MakeBackend, precision: Precision = Precision.FP32) -> LoadedModel:
    return load_model(DEMO_MODEL, precision, "cpu", make_backend)


def get(models: Models, name: str, precision: Precision) -> LoadedModel:
    return models.prefetch(name, precision).result(PATIENCE_SECONDS)


def require_right(model: LoadedModel, gpu: Gpu, *, replays: int) -> None:
    """Through a batcher its features are those of torch on the CPU; so many batches are replayed graphs."""
    gpu.device.replays = 0
    assert through_a_batcher(model) > 0.9999
    assert gpu.device.replays == replays


def through_a_batcher(model: LoadedModel) -> float:
    """The worst cosine of what a worker would write, to torch on the CPU."""
    pixels = np.random.default_rng(0).integers(0, 256, (3 * BATCH + 5, 64, 64, 3), dtype=np.uint8)
    batcher, outcomes = Batcher(BATCH, ring_batches=100), Outcomes(len(pixels))
    batcher.submit(ItemSlice(model, Lane.NORMAL, list(pixels), list(range(len(pixels))), outcomes))
    batcher.start()
    outcomes.wait()
    batcher.stop()
    right = loaded(TorchBackend).encode_images(pixels)
    return float(cosines(np.stack(outcomes.features), right).min())


def rotated(features: torch.Tensor) -> torch.Tensor:
    return features.roll(1, dims=1)


def of_a_batch_before(batches: int = 1) -> Spoil:
    kept: list[torch.Tensor] = []

    def spoil(features: torch.Tensor) -> torch.Tensor:
        kept.append(features.clone())
        return kept[-1 - batches] if len(kept) > batches else features

    return spoil


WRONG: dict[str, Callable[[], Spoil]] = {
    "rotated": lambda: rotated,
    "NaN": lambda: lambda features: features * torch.nan,
    "stale": of_a_batch_before,
    "zeros": lambda: torch.zeros_like,
}


class TestWays:
    def test_one_that_is_right_and_faster_is_used(self, clock: Ticks) -> None:
        gpu = Gpu(clock)

        model = loaded(gpu)

        certificate = model.certificate
        assert certificate.used.name == GRAPH
        assert [way.refused for way in certificate.ways] == ["", ""]
        assert certificate.used.worst_cosine > 0.9999
        require_right(model, gpu, replays=3)

    @pytest.mark.parametrize("kind", [*WRONG, "slow"])
    def test_one_that_is_wrong_or_slower_is_refused(self, clock: Ticks, kind: str) -> None:
        is_slow = kind == "slow"
        gpu = Gpu(clock, graph_seconds=1.5) if is_slow else Gpu(clock, spoil=WRONG[kind]())

        model = loaded(gpu)

        assert model.certificate.used.name == PLAIN
        assert f"off: graph ({'no faster' if is_slow else 'worst cosine'}" in str(model.certificate)
        require_right(model, gpu, replays=0)

    def test_features_of_two_batches_before_are_found_by_two_looks(self, clock: Ticks) -> None:
        # As where each slot of a ring keeps what it held.
        gpu = Gpu(clock)
        model = loaded(gpu)

        gpu.spoil = of_a_batch_before(2)

        assert model.worst_cosine() > 0.9999
        assert model.worst_cosine() < 0.9

    @pytest.mark.parametrize("error", [RuntimeError("operation not permitted"), MemoryError("2 GiB")])
    def test_one_that_cannot_be_had_is_refused(self, clock: Ticks, error: Exception) -> None:
        gpu = Gpu(clock)
        gpu.device.before_recording = failing(error)

        model = loaded(gpu)

        assert model.certificate.ways[1] == Way(GRAPH, refused=str(error))
        assert through_a_batcher(model) > 0.9999

    def test_a_device_that_is_lost_over_it_is_no_matter_of_ways(self, clock: Ticks) -> None:
        gpu = Gpu(clock)
        error = RuntimeError("CUDA error: an illegal memory access was encountered")

        def fail() -> None:
            gpu.device.forwards.error = error
            raise error

        gpu.device.before_recording = fail

        with pytest.raises(RuntimeError, match="illegal memory access"):
            loaded(gpu)

    @pytest.mark.parametrize(("seconds", "timed"), [(5.0, 3), (0.25, 4), (0.01, 10)])
    def test_a_way_is_timed_for_a_second(
        self, monkeypatch: pytest.MonkeyPatch, seconds: float, timed: int
    ) -> None:
        # The thread of the device does nothing else meanwhile.
        monkeypatch.setattr("clipfleet_worker.encode.backends.certificate._TIMED_BATCHES", 10)
        ticks = Ticks()
        monkeypatch.setattr("clipfleet_worker.encode.backends.certificate.perf_counter", lambda: ticks.now)
        gpu = Gpu(ticks)
        whole: list[bool] = []
        begin = CudaBackend.begin_images

        def noted(backend: CudaBackend, pixels: np.ndarray) -> Any:
            whole.append(len(pixels) == BATCH)
            ticks.now += seconds - 1.0  # beside what a pass takes by itself
            return begin(backend, pixels)

        monkeypatch.setattr(CudaBackend, "begin_images", noted)
        gpu.device.graphs_off = "as in this test"

        loaded(gpu)

        assert sum(whole) == 2 + timed + 2  # first all canaries, and after the graph that is off once more

    def test_a_line_says_it_all(self) -> None:
        ways = Way(PLAIN, 0.99962, 27_900.0), Way(GRAPH, 0.99961, 36_100.0)
        off = Way("compiled", refused="no C compiler")

        assert str(Certificate(256, (*ways, off))) == (
            "batch 256, plain 27,900/s, used: graph 36,100/s (1.29), worst cosine to fp32 0.99961; "
            "off: compiled (no C compiler)"
        )
        assert str(Certificate(8, (Way(PLAIN, 0.99962),))) == "batch 8, worst cosine to fp32 0.99962"


class Spoilt(TorchBackend):
    """Wrong on the CPU, in some precisions."""

    name = "spoilt"

    def __init__(self, towers: Towers, device: str, spoil: Spoil, precisions: set[Precision]) -> None:
        super().__init__(towers, device)
        self._spoil: Spoil = spoil if towers.precision in precisions else lambda features: features

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        features: np.ndarray = self._spoil(torch.from_numpy(super().encode_images(pixels))).numpy()
        return features


def spoilt(kind: str, *precisions: Precision) -> MakeBackend:
    return lambda towers, device: Spoilt(towers, device, WRONG[kind](), set(precisions))


class TestPlain:
    @pytest.mark.parametrize("kind", WRONG)
    def test_a_model_whose_fp32_is_off_is_refused(self, kind: str) -> None:
        with pytest.raises(ModelUnavailableError, match=r"wrong features in fp32 .* at least 0\.9999"):
            loaded(spoilt(kind, Precision.FP32))

    def test_so_is_one_whose_texts_are_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = TorchBackend.encode_texts
        monkeypatch.setattr(TorchBackend, "encode_texts", lambda *of: right(*of)[::-1].copy())

        with pytest.raises(ModelUnavailableError, match="wrong features in fp32"):
            loaded(TorchBackend)

    def test_a_precision_that_is_off_falls_to_fp32(self, caplog: pytest.LogCaptureFixture) -> None:
        announced: list[object] = []
        make = spoilt("rotated", Precision.BF16)

        model = load_model(DEMO_MODEL, Precision.AUTO, "cpu", make, announced.append)

        assert model.precision is Precision.FP32
        assert model.fingerprint == loaded(TorchBackend).fingerprint
        assert "wrong features in bf16" in caplog.text and "loaded in fp32" in caplog.text
        assert len(announced) == 1

    def test_unless_it_was_asked_for(self) -> None:
        with pytest.raises(ModelUnavailableError, match=r"wrong features in bf16 .* use auto or fp32"):
            loaded(spoilt("rotated", Precision.BF16), Precision.BF16)

    @pytest.mark.parametrize("kind", [RuntimeError, ValueError, ZeroDivisionError])
    def test_a_pass_that_fails_is_as_good_as_off(
        self, kind: type[Exception], caplog: pytest.LogCaptureFixture
    ) -> None:
        # Given what a CPU does not compute in a precision: a thread that ends with it ends the process
        def make(towers: Towers, device: str) -> Backend:
            return Spoilt(towers, device, failing(kind("not for 'BFloat16'")), {Precision.BF16})

        assert loaded(make, Precision.AUTO).precision is Precision.FP32
        assert "wrong features in bf16" in caplog.text and "not for 'BFloat16'" in caplog.text
        with pytest.raises(ModelUnavailableError, match=r"not for .* use auto or fp32"):
            loaded(make, Precision.BF16)

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError("2 GiB"),
            BatcherStopped("the worker stops"),
            RuntimeError("CUDA error: an illegal memory access was encountered"),
            RuntimeError("can't start new thread"),
        ],
        ids=["memory", "stopped", "lost", "threads"],
    )
    def test_what_no_model_is_to_blame_for_stays_what_it_is(self, error: Exception) -> None:
        with pytest.raises(type(error), match=str(error)):
            load_model(DEMO_MODEL, Precision.AUTO, "cpu", on_device=failing(error))

    @pytest.mark.parametrize("precision", [Precision.AUTO, Precision.BF16])
    def test_one_that_is_refused_is_freed_before_anything_else_is_loaded(
        self, precision: Precision, monkeypatch: pytest.MonkeyPatch, batcher: Batcher
    ) -> None:
        made: list[weakref.ref[Backend]] = []

        def make(towers: Towers, device: str) -> Backend:
            backend = spoilt("rotated", Precision.BF16)(towers, device)
            made.append(weakref.ref(backend))
            return backend

        def all_are_freed() -> None:
            wait_until(lambda: not any(backend() for backend in made), "what was made before is freed")

        def fetch(name: str) -> ModelFiles:
            all_are_freed()
            return fetch_files(name)

        monkeypatch.setattr("clipfleet_worker.models.loader.fetch_files", fetch)
        load = partial(load_model, on_device=partial(batcher.call, lane=Lane.HIGH))
        gc.disable()
        try:
            if precision is Precision.AUTO:
                load(DEMO_MODEL, precision, "cpu", make)
                assert len(made) == 2
            else:
                with pytest.raises(ModelUnavailableError):  # whose traceback is kept here
                    load(DEMO_MODEL, precision, "cpu", make)
                all_are_freed()
        finally:
            gc.enable()

    def test_weights_that_give_no_numbers_are_refused(self, tmp_path: Path) -> None:
        def spoil(_: object, weights: dict[str, torch.Tensor]) -> None:
            weights["ln_final.bias"][3] = torch.nan

        with pytest.raises(ModelUnavailableError, match="worst cosine to fp32 on the CPU nan"):
            load_model(altered_demo(tmp_path, spoil), Precision.FP32, "cpu")

    def test_so_is_a_text_tower_with_fewer_words_than_the_tokenizer(self, tmp_path: Path) -> None:
        def cut(configuration: Any, weights: dict[str, torch.Tensor]) -> None:
            configuration["model_cfg"]["text_cfg"]["vocab_size"] = 1000
            weights["token_embedding.weight"] = weights["token_embedding.weight"][:1000].clone()

        with pytest.raises(ModelUnavailableError, match=r"cannot be used: .*index out of range"):
            load_model(altered_demo(tmp_path, cut), Precision.FP32, "cpu")


class TestWhatIsKept:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
        """Batches that a backend has encoded: images or texts, and how many."""
        batches: list[tuple[str, int]] = []

        def note(kind: str) -> None:
            encode = getattr(TorchBackend, f"encode_{kind}")

            def noted(backend: TorchBackend, batch: Any) -> Any:
                batches.append((kind, len(batch)))
                return encode(backend, batch)

            monkeypatch.setattr(TorchBackend, f"encode_{kind}", noted)

        note("images")
        note("texts")
        return batches

    @pytest.fixture
    def computed(self, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        """One for each time that the right features were computed."""
        times: list[object] = []
        compute = Canaries._compute
        monkeypatch.setattr(Canaries, "_compute", lambda *of: times.append(of) or compute(*of))
        return times

    def test_the_next_start_on_a_cpu_asks_once_in_the_shape_of_production(
        self, asked: list[tuple[str, int]], computed: list[object]
    ) -> None:
        first = loaded(TorchBackend)
        assert asked == [("images", 8), ("images", 8), ("texts", 8), ("texts", 8)]
        asked.clear()

        assert loaded(TorchBackend).certificate == first.certificate
        assert asked == [("images", 8), ("texts", 8)]
        assert len(computed) == 1

    def test_what_is_wrong_for_batches_only_is_found_by_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded(TorchBackend)
        right = TorchBackend.encode_images

        def encode(backend: TorchBackend, pixels: np.ndarray) -> np.ndarray:
            features = right(backend, pixels)
            return features if len(pixels) < 2 else features[:, ::-1].copy()

        monkeypatch.setattr(TorchBackend, "encode_images", encode)

        with pytest.raises(ModelUnavailableError, match="wrong features in fp32"):
            loaded(TorchBackend)

    @pytest.mark.parametrize(
        ("where", "value"),
        [
            ("clipfleet_worker.models.loaded.__version__", "9"),
            ("torch.__version__", "9.0.0"),
            ("clipfleet_worker.encode.backends.certificate.cpu_name", lambda: "another"),
        ],
        ids=["clipfleet", "torch", "CPU"],
    )
    def test_a_verdict_is_of_what_ran_the_model_and_where(
        self, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, where: str, value: object
    ) -> None:
        loaded(TorchBackend)
        asked.clear()
        monkeypatch.setattr(where, value)

        loaded(TorchBackend)

        assert len(asked) == 4

    @pytest.mark.parametrize("kind", ["reversed", "NaN", "rotten", "cut off"])
    def test_features_that_are_wrong_there_are_computed_again(
        self, computed: list[object], monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        loaded(TorchBackend)
        (file,) = cache_folder().glob("canaries-*")
        if kind == "rotten":
            file.write_bytes(file.read_bytes()[:-900] + b"\x3f" * 900)
        elif kind == "cut off":
            for one in cache_folder().iterdir():
                one.write_bytes(one.read_bytes()[:100])
        else:
            right = load_file(file)
            wrong = {name: right[name][:, ::-1] if kind == "reversed" else right[name] * np.nan
                     for name in ("images", "texts")}  # fmt: skip
            with monkeypatch.context() as patch:
                patch.setattr("clipfleet_worker.encode.kept_arrays.kept_file", lambda *_: file)
                keep("canaries", [], {name: values.copy() for name, values in wrong.items()})

        for _ in range(2):
            assert loaded(TorchBackend).certificate.used.worst_cosine > 0.9999
        assert len(computed) == 2

    def test_what_is_off_is_refused_once_they_were_computed_again(self, computed: list[object]) -> None:
        loaded(TorchBackend)

        for times in (2, 3):
            with pytest.raises(ModelUnavailableError, match="wrong features in fp32"):
                loaded(spoilt("rotated", Precision.FP32))
            assert len(computed) == times

        assert list(cache_folder().glob("canaries-*")) == []  # no backend has met them

    def test_a_gpu_proves_itself_each_time(self, clock: Ticks) -> None:
        loaded(Gpu(clock))

        assert loaded(Gpu(clock, spoil=rotated)).certificate.used.name == PLAIN

    def test_without_a_folder_nothing_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        caplog.set_level(logging.INFO)

        assert loaded(TorchBackend).certificate.used.worst_cosine > 0.9999
        assert "cannot keep arrays" in caplog.text

    def test_it_lies_below_the_users_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/theirs")
        assert cache_folder() == Path("/var/cache/theirs/clipfleet")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "/home/somebody")
        assert cache_folder() == Path("/home/somebody/.cache/clipfleet")


class TestKeys:
    """What is kept is of one model, whatever another one has in common with it."""

    def key_of(self, **options: Any) -> tuple[str, str]:
        module = Activated(options.pop("activation", torch.nn.GELU()))
        made: list[Towers] = []

        def make(towers: Towers, device: str) -> Backend:
            made.append(towers)
            return TorchBackend(towers, device)

        facts: dict[str, Any] = {"tokenizer": tokenizer, "configuration": {"heads": 4}} | options
        model = LoadedModel(
            "tiny", module, facts.pop("tokenizer"), FakeEncoder(size=8).pixel_spec,
            embedding_dimension=4, precision=Precision.FP32, device="cpu", make_backend=make, **facts,
        )  # fmt: skip
        model.prove()
        return model.fingerprint, made[0].key

    @pytest.mark.parametrize(
        "other",
        [
            {"activation": torch.nn.ReLU()},
            {"activation": torch.nn.GELU(approximate="tanh")},
            {"configuration": {"heads": 2}},
            {"tokenizer": lambda prompts: tokenizer(prompts) + 1},
        ],
        ids=["activation", "its kind", "heads", "tokenizer"],
    )
    def test_models_of_the_same_weights_have_keys_of_their_own(self, other: dict[str, Any]) -> None:
        fingerprint, key = self.key_of()

        assert self.key_of() == (fingerprint, key)
        other_fingerprint, other_key = self.key_of(**other)
        assert (other_fingerprint, other_key != key) == (fingerprint, True)
        for kind in ("canaries", "verdict"):
            assert len(list(cache_folder().glob(f"{kind}-*"))) == 2

    def test_one_after_the_other_is_what_it_is(self, tmp_path: Path) -> None:
        def alter(said: Any, _: object) -> None:
            said["model_cfg"]["quick_gelu"] = not said["model_cfg"].get("quick_gelu", False)

        loaded(TorchBackend)

        other = load_model(altered_demo(tmp_path, alter), Precision.FP32, "cpu")

        assert other.certificate.used.worst_cosine > 0.9999
        assert len(list(cache_folder().glob("canaries-*"))) == 2


class Activated(TinyModule):
    """Has a layer without weights."""

    def __init__(self, activation: torch.nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.activation(images[:, 0, 0, :4])


class TestDoctor:
    """It makes the worker's own backend, here that of a device, or one of the CPU's."""

    def findings(
        self, monkeypatch: pytest.MonkeyPatch, make_backend: MakeBackend, precision: Precision
    ) -> list[Finding]:
        device = DeviceSetUp("cpu", BATCH, make_backend)
        monkeypatch.setattr("clipfleet_worker.doctor.model_check.make_device_set_up", lambda _: device)
        settings = WorkerSettings(redis_url=SecretStr("redis://h:6379/0"), precision=precision)
        return list(model_findings(settings, DEMO_MODEL))

    @pytest.mark.parametrize(
        ("gpu", "reason"),
        [
            ({"graph_seconds": 1.5}, r"no faster: \d+/s"),
            ({"spoil": WRONG["NaN"]()}, r"worst cosine nan, not 0\.9999"),
            ({"spoil": rotated}, r"worst cosine -?0\.\d{5}, not 0\.9999"),
        ],
        ids=["slower", "NaN", "rotated"],
    )
    def test_it_tells_the_ways_and_what_is_off(
        self, monkeypatch: pytest.MonkeyPatch, clock: Ticks, gpu: dict[str, Any], reason: str
    ) -> None:
        found = self.findings(monkeypatch, Gpu(clock, **gpu), Precision.FP32)

        assert [finding.level for finding in found] == [Level.OK, Level.OK]
        assert "fp32 by cuda" in found[0].what
        line = rf"demo: batch 9, plain \d+/s, worst cosine to fp32 1\.00000; off: graph \({reason}\)"
        assert re.fullmatch(line, found[1].what)

    def test_it_loads_with_the_threads_of_a_worker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # With others OpenVINO would compile anew, and what the worker has kept would be pushed out.
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr("clipfleet_worker.process.cores.cpus", lambda: 3)
        threads: list[int] = []

        def make(towers: Towers, device: str) -> Backend:
            threads.append(torch.get_num_threads())
            return TorchBackend(towers, device)

        self.findings(monkeypatch, make, Precision.FP32)

        assert threads == [3]

    def test_a_device_that_fails_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        error = RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA")

        (found,) = self.findings(monkeypatch, failing(error), Precision.FP32)

        assert found.level is Level.PROBLEM
        assert found.what == "demo fails on this device: CUDA error: device-side assert triggered"

    def test_a_model_that_is_off_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (found,) = self.findings(monkeypatch, spoilt("zeros", Precision.FP32), Precision.FP32)

        assert found.level is Level.PROBLEM
        assert "wrong features in fp32" in found.what and "models pull" in found.remedy

    def test_a_precision_that_is_off_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.findings(monkeypatch, spoilt("rotated", Precision.BF16), Precision.AUTO)

        assert [finding.level for finding in found] == [Level.OK, Level.OK, Level.WARNING]
        assert "gives wrong features in bf16" in found[2].what

    def test_what_has_broken_since_the_certificate_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded(TorchBackend)
        right, calls = TorchBackend.encode_texts, count()

        def encode(*of: Any) -> np.ndarray:
            return right(*of)[:: -1 if next(calls) else 1].copy()

        monkeypatch.setattr(TorchBackend, "encode_texts", encode)

        found = self.findings(monkeypatch, TorchBackend, Precision.FP32)

        assert [finding.level for finding in found] == [Level.OK, Level.OK, Level.PROBLEM]
        assert "wrong features" in found[2].what


class TestWatch:
    @pytest.fixture
    def gpu(self, clock: Ticks) -> Gpu:
        return Gpu(clock)

    @pytest.fixture
    def models(self, gpu: Gpu) -> Models:
        return self.models_of(gpu)

    @pytest.fixture
    def model(self, models: Models) -> LoadedModel:
        return get(models, DEMO_MODEL, Precision.FP32)

    def models_of(self, gpu: Gpu, **options: Any) -> Models:
        def load(name: str, precision: Precision, loading: Loading) -> LoadedModel:
            return load_model(name, precision, "cpu", gpu, loading.announce)

        return Models((DEMO_MODEL,), load, kept=2, default_precision=Precision.FP32, **options)

    @pytest.fixture
    def watch(self, models: Models, batcher: Batcher, time: Clock) -> CanaryWatch:
        batcher.busy = BusyMeter(1, time)
        return CanaryWatch(models, batcher, time)

    @pytest.fixture
    def time(self) -> Clock:
        return Clock()

    def test_as_long_as_all_is_well_nothing_changes(
        self, gpu: Gpu, model: LoadedModel, watch: CanaryWatch
    ) -> None:
        gpu.device.replays = 0
        watch.check()

        assert gpu.device.replays == 2  # as many as it takes to see what is of the batch before
        assert watch.mismatches == 0
        assert gpu.device.graphs_off == ""
        assert model.certificate.used.name == GRAPH

    def test_a_graph_that_goes_wrong_turns_all_models_to_plain(
        self, gpu: Gpu, models: Models, watch: CanaryWatch, caplog: pytest.LogCaptureFixture, time: Clock
    ) -> None:
        # Given a graph that is spoilt by another model, long after it was certified
        in_use = [get(models, DEMO_MODEL, precision) for precision in (Precision.FP32, Precision.BF16)]
        watch.check()
        gpu.spoil = rotated

        time.now += 90
        watch.check()

        assert watch.mismatches == 1
        (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
        assert "wrong features of demo" in said
        assert "rows of the last 90 s may be wrong" in said
        require_right(in_use[0], gpu, replays=0)
        assert "wrong features" in loaded(gpu).certificate.ways[1].refused

    def test_where_plain_passes_are_wrong_too_nothing_goes_on(
        self, gpu: Gpu, model: LoadedModel, watch: CanaryWatch
    ) -> None:
        gpu.break_down()

        with pytest.raises(DeviceBroken, match="with the plain pass as well"):
            watch._check(model)

    def test_what_fails_for_want_of_memory_is_asked_again(
        self, gpu: Gpu, model: LoadedModel, watch: CanaryWatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        gpu.device.before_run = failing(MemoryError("CUDA out of memory"))
        watch.check()
        gpu.device.before_run = gpu.before_run
        watch.check()

        assert "the canaries of demo failed: CUDA out of memory" in caplog.text
        assert watch.mismatches == 0

    def test_a_device_that_is_lost_ends_the_thread_and_with_it_the_process(
        self, gpu: Gpu, model: LoadedModel, watch: CanaryWatch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deaths: list[threading.ExceptHookArgs] = []
        monkeypatch.setattr(threading, "excepthook", deaths.append)
        error = RuntimeError("CUDA error: an illegal memory access was encountered")

        gpu.device.before_run = failing(error)
        watch.request()
        watch.start()

        wait_until(lambda: deaths, "the thread has died")
        assert (deaths[0].thread.name, deaths[0].exc_value) == ("canaries", error)

    def test_a_device_with_little_to_do_is_asked_once_a_minute(
        self, watch: CanaryWatch, batcher: Batcher, time: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[float] = []
        monkeypatch.setattr(watch, "check", lambda: looks.append(time.now))
        began = time.now

        def pass_by(seconds: int, *, busy: float) -> None:
            for _ in range(seconds):
                with batcher.busy:
                    time.now += busy
                time.now += 1 - busy
                watch.run_once()

        pass_by(125, busy=0.25)
        assert looks == [began + 60, began + 120]
        pass_by(300, busy=0.75)
        assert looks == [began + 60, began + 120]
        pass_by(2, busy=0)
        assert looks == [began + 60, began + 120, began + 426]

    def test_it_looks_after_each_loading_whatever_the_device_has_to_do(
        self, gpu: Gpu, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        changed, looked = threading.Event(), list[LoadedModel]()

        def on_change() -> None:
            watch.request()
            changed.set()

        models = self.models_of(gpu, on_change=on_change)
        watch = CanaryWatch(models, batcher)
        monkeypatch.setattr(LoadedModel, "worst_cosine", lambda model: looked.append(model) or 1.0)

        with batcher.busy:
            model = get(models, DEMO_MODEL, Precision.FP32)
            assert changed.wait(PATIENCE_SECONDS)
            watch.run_once()
            watch.run_once()

        assert looked == [model]
