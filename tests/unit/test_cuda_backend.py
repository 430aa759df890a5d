"""The CUDA backend without CUDA: on a device that puts its work off, what is not ordered goes wrong."""

from __future__ import annotations

import importlib.util
import logging
import os
import stat
import tempfile
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from clipfleet.contract import DEMO_MODEL, Lane, Precision
from clipfleet_worker.backends import PendingFeatures, Towers
from clipfleet_worker.backends.compiling import Compiler, cache_folder, private_folder
from clipfleet_worker.backends.cuda_backend import CudaBackend, sizes_of
from clipfleet_worker.backends.fixed_passes import FixedPasses, _FixedPass
from clipfleet_worker.backends.pixel_ring import PixelRing, _Slot
from clipfleet_worker.batcher import Batcher
from clipfleet_worker.batches import ItemSlice
from clipfleet_worker.model import LoadedModel, load_model
from clipfleet_worker.outcomes import Outcomes
from tests.support.fake_device import FakeDevice, Schedule
from tests.support.fakes import FakeEncoder
from tests.support.reference import cosines

SIZE = 4
BATCH = 8
TOKENS = 5

Work = Callable[[], None]


class Module(torch.nn.Module):
    """Its features of an image or text depend on every number in it, and on nothing else."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.image = torch.nn.Parameter(torch.randn(3 * SIZE * SIZE, 6, generator=random))
        self.text = torch.nn.Parameter(torch.randn(TOKENS, 6, generator=random))

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(len(images), -1) @ self.image

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float() @ self.text


class Plain:
    """Compiles nothing."""

    def compiled(self, forward: object) -> None:
        return None


class Compiling:
    """Marks what it has compiled by counting its calls, and may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls = 0
        self._error = error

    def compiled(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(rows: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self._error is not None:
                raise self._error
            return forward(rows)

        return run


def towers() -> Towers:
    spec = FakeEncoder(size=SIZE).pixel_spec
    return Towers(Module(), spec, torch.ones((1, TOKENS), dtype=torch.int64), Precision.FP32, "print")


def make(device: FakeDevice, compiler: object | None = None, batch: int = BATCH) -> CudaBackend:
    return CudaBackend(towers(), device, batch, compiler or Plain())  # type: ignore[arg-type]  # doubles


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def expected_of(pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        return torch.nn.functional.normalize(Module().encode_image(images), dim=-1).numpy()


def expected_of_texts(tokens: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.nn.functional.normalize(Module().encode_text(tokens), dim=-1).numpy()


def begin(backend: CudaBackend, pixels: np.ndarray) -> PendingFeatures:
    """As the batcher does: the array is the backend's own, and is written over when it is lent again."""
    lent = backend.new_pixels(len(pixels))
    lent[...] = pixels
    return backend.begin_images(lent)


def run_many(backend: CudaBackend, counts: list[int]) -> float:
    """Two batches under way all the time; the largest difference to the truth."""
    under_way: deque[tuple[np.ndarray, PendingFeatures]] = deque()
    worst = 0.0
    for seed, count in enumerate(counts):
        pixels = pictures(count, seed)
        under_way.append((pixels, begin(backend, pixels)))
        if len(under_way) == backend.batches_in_flight or seed == len(counts) - 1:
            for _ in range(1 if seed < len(counts) - 1 else len(under_way)):
                sent, pending = under_way.popleft()
                difference = np.abs(pending.result() - expected_of(sent)).max()
                worst = max(worst, float(np.nan_to_num(difference, nan=9.0)))
    return worst


ALL_SCHEDULES = [(schedule, 0) for schedule in Schedule] + [(Schedule.ANYHOW, seed) for seed in range(1, 6)]
COUNTS = [8, 8, 8, 3, 8, 1, 8, 8, 2, 7, 8, 8]


@pytest.mark.parametrize(("schedule", "seed"), ALL_SCHEDULES)
class TestOrder:
    def test_every_row_is_that_of_its_picture(self, schedule: Schedule, seed: int) -> None:
        assert run_many(make(FakeDevice(schedule, seed)), COUNTS) < 1e-5

    def test_also_where_no_result_is_asked_for_until_the_end(self, schedule: Schedule, seed: int) -> None:
        # Given more batches begun than there are arrays
        backend = make(FakeDevice(schedule, seed))
        batches = [pictures(8, n) for n in range(7)]

        pending = [begin(backend, pixels) for pixels in batches]

        for pixels, features in zip(batches, pending, strict=True):
            np.testing.assert_allclose(features.result(), expected_of(pixels), atol=1e-5)

    def test_a_batch_larger_than_usual_goes_in_parts(self, schedule: Schedule, seed: int) -> None:
        backend, pixels = make(FakeDevice(schedule, seed)), pictures(5 * BATCH + 3)

        np.testing.assert_allclose(begin(backend, pixels).result(), expected_of(pixels), atol=1e-5)

    def test_pixels_that_lie_elsewhere_are_taken_too(self, schedule: Schedule, seed: int) -> None:
        backend, pixels = make(FakeDevice(schedule, seed)), pictures(6)

        first = backend.begin_images(pixels)
        second = backend.begin_images(pixels[::-1])

        np.testing.assert_allclose(first.result(), expected_of(pixels), atol=1e-5)
        np.testing.assert_allclose(second.result(), expected_of(pixels)[::-1], atol=1e-5)

    def test_texts_go_in_between(self, schedule: Schedule, seed: int) -> None:
        backend, pixels = make(FakeDevice(schedule, seed)), pictures(8)
        tokens = torch.arange(150 * TOKENS).reshape(150, TOKENS) % 97
        pending = begin(backend, pixels)

        np.testing.assert_allclose(backend.encode_texts(tokens), expected_of_texts(tokens), atol=1e-5)
        np.testing.assert_allclose(pending.result(), expected_of(pixels), atol=1e-5)


class TestTheDeviceItself:
    """It must find what is not ordered, or the tests above prove nothing."""

    def worst(self, schedule: Schedule) -> float:
        return run_many(make(FakeDevice(schedule)), COUNTS)

    def test_an_array_that_is_lent_before_it_was_fetched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_Slot, "wait_until_fetched", lambda slot: None)
        backend = make(FakeDevice(Schedule.LATE))
        batches = [pictures(8, n) for n in range(7)]
        pending = [begin(backend, pixels) for pixels in batches]

        assert np.abs(pending[0].result() - expected_of(batches[0])).max() > 0.01

    def test_a_pass_that_does_not_wait_for_its_pixels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = FakeDevice(Schedule.FORWARDS_FIRST)
        monkeypatch.setattr(device.forwards, "wait_for", lambda event: None)

        assert run_many(make(device), COUNTS) > 0.01

    def test_memory_that_is_written_before_it_was_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PixelRing, "note_read", lambda *_: None)
        backend = make(FakeDevice(Schedule.COPIES_FIRST))
        batches = [pictures(8, n) for n in range(7)]
        pending = [begin(backend, pixels) for pixels in batches]

        assert np.abs(pending[0].result() - expected_of(batches[0])).max() > 0.01

    def test_features_that_are_read_before_they_are_there(self) -> None:
        pending = begin(make(FakeDevice(Schedule.LATE)), pictures(8))

        assert not np.allclose(pending.parts[0].features.numpy(), expected_of(pictures(8)))  # type: ignore[attr-defined]


class TestSizes:
    def test_there_are_few(self) -> None:
        assert sizes_of(256) == [16, 64, 256]
        assert sizes_of(8) == [1, 2, 8]
        assert sizes_of(1) == [1]

    def test_what_is_left_empty_is_filled_with_something_harmless(self) -> None:
        # Given a batch of guilty pictures, and then one that leaves most places empty
        seen: list[torch.Tensor] = []

        def forward(rows: torch.Tensor) -> torch.Tensor:
            seen.append(rows.clone())
            return rows.reshape(len(rows), -1).float()

        device = FakeDevice()
        passes = FixedPasses("images", device, forward, torch.zeros(2, dtype=torch.uint8), [4])
        passes.begin(torch.full((4, 2), 13, dtype=torch.uint8))
        passes.begin(torch.full((1, 2), 7, dtype=torch.uint8))
        device.forwards.record().wait()

        assert seen[-1].tolist() == [[7, 7], [0, 0], [0, 0], [0, 0]]

    def test_the_smallest_that_is_enough_is_taken(self) -> None:
        sizes: list[int] = []

        def forward(rows: torch.Tensor) -> torch.Tensor:
            sizes.append(len(rows))
            return rows.float()

        device = FakeDevice()
        passes = FixedPasses("images", device, forward, torch.zeros(2, dtype=torch.uint8), [1, 4, 16])
        passes.warm_up()
        del sizes[:]
        for count in (1, 2, 4, 5, 16, 20, 33):
            passes.begin(torch.zeros((count, 2), dtype=torch.uint8))
        device.forwards.record().wait()

        assert sizes == [1, 4, 4, 16, 16, 16, 4, 16, 16, 1]


def refuses(largest: int, refused: list[int] | None = None) -> Callable[[Work], None]:
    """Work of passes that are larger finds no memory."""

    def check(work: Work) -> None:
        fixed = getattr(getattr(work, "func", work), "__self__", None)
        size = getattr(fixed, "size", 0)
        if size > largest:
            if refused is not None:
                refused.append(size)
            raise MemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    return check


def cannot_be_recorded(work: Work) -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


class TestMemory:
    def test_what_was_too_much_is_free_before_less_is_tried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # An exception holds on to the variables of the functions that it came through.
        device, alive = FakeDevice(), []
        device.before_recording = cannot_be_recorded
        backend = make(device)
        backend.warm_up()
        device.before_run = refuses(2)
        made: list[weakref.ref[_FixedPass]] = [weakref.ref(fixed) for fixed in backend._images._passes]
        monkeypatch.setattr(device, "forget_freed", lambda: alive.append([one() for one in made]))

        begin(backend, pictures(8))

        assert alive == [[None, None, None]] * 2

    @pytest.mark.parametrize("when", ["before_set_up", "before_recording"])
    def test_a_batch_that_does_not_fit_is_halved_when_the_model_is_loaded(
        self, when: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        device = FakeDevice()
        setattr(device, when, refuses(2))
        backend = make(device)

        backend.warm_up()

        assert backend.largest_batch == 2
        told = [record for record in caplog.records if "images" in record.getMessage()]
        assert [record.levelno for record in told] == [logging.WARNING] * 2
        assert run_many(backend, COUNTS) < 1e-5

    def test_or_when_it_no_longer_fits_and_that_is_remembered(self, caplog: pytest.LogCaptureFixture) -> None:
        device, refused = FakeDevice(Schedule.COPIES_FIRST), []
        backend = make(device)
        backend.warm_up()
        device.before_run = refuses(4, refused)

        assert run_many(backend, COUNTS) < 1e-5
        assert backend.largest_batch == 4
        assert refused == [8]
        assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
            "no memory on the device for 8 images at a time, from now on 4"
        ]
        assert device.forgotten == 2  # once at the warm-up

    def test_the_second_part_of_a_batch_may_find_no_memory(self) -> None:
        device = FakeDevice()
        backend, pixels = make(device), pictures(8)
        backend.warm_up()
        runs = iter([None, None])

        def check(work: Work) -> None:
            if "_copy" not in repr(work):
                refuses(4 if next(runs, "over") is None else 2)(work)

        device.before_run = check

        np.testing.assert_allclose(begin(backend, pixels).result(), expected_of(pixels), atol=1e-5)
        assert backend.largest_batch == 2

    def test_a_device_without_memory_for_one_picture_says_so(self) -> None:
        device = FakeDevice()
        backend = make(device)
        backend.warm_up()
        device.before_run = lambda work: None if "_copy" in repr(work) else refuses(0)(work)

        with pytest.raises(MemoryError, match="Tried to allocate"):
            begin(backend, pictures(8))

        device.before_run = lambda work: None
        pixels = pictures(3)
        np.testing.assert_allclose(begin(backend, pixels).result(), expected_of(pixels), atol=1e-5)

    def test_likewise_while_it_is_loaded(self) -> None:
        device = FakeDevice()
        device.before_set_up = refuses(0)

        with pytest.raises(MemoryError, match="Tried to allocate"):
            make(device).warm_up()


class TestSpeed:
    def test_passes_are_compiled_and_recorded_once_per_size_before_the_first_batch(self) -> None:
        device, compiler = FakeDevice(), Compiling()
        backend = make(device, compiler)

        backend.warm_up()

        assert device.recordings == len(sizes_of(BATCH)) + 1  # and one for texts
        assert compiler.calls
        assert run_many(backend, COUNTS) < 1e-5
        assert device.recordings == len(sizes_of(BATCH)) + 1

    def test_what_cannot_be_compiled_runs_as_it_is(self, caplog: pytest.LogCaptureFixture) -> None:
        device, compiler = FakeDevice(), Compiling(RuntimeError("no C compiler\nat all"))
        backend = make(device, compiler)

        backend.warm_up()

        assert compiler.calls == 2  # once for images, once for texts
        assert [record.getMessage() for record in caplog.records] == [
            f"the forward pass of {what} is not compiled, which costs speed only: no C compiler"
            for what in ("images", "texts")
        ]
        assert device.recordings == len(sizes_of(BATCH)) + 1
        assert run_many(backend, COUNTS) < 1e-5

    def test_what_cannot_be_recorded_runs_step_by_step(self, caplog: pytest.LogCaptureFixture) -> None:
        device = FakeDevice(Schedule.ANYHOW)
        device.before_recording = cannot_be_recorded
        backend = make(device)

        assert run_many(backend, COUNTS) < 1e-5
        assert len([record for record in caplog.records if "not recorded" in record.getMessage()]) == 1

    def test_a_model_that_fails_is_not_taken_for_one_that_cannot_be_compiled(self) -> None:
        def refuse(work: Work) -> None:
            raise RuntimeError("CUDA error: no kernel image is available")

        device = FakeDevice()
        device.before_set_up = refuse

        with pytest.raises(RuntimeError, match="no kernel image"):
            make(device, Compiling()).warm_up()


class TestFailures:
    def test_what_goes_wrong_on_the_device_shows_at_the_result(self) -> None:
        device = FakeDevice()
        backend = make(device)
        backend.warm_up()
        first = begin(backend, pictures(8))
        device.forwards.run(lambda: (_ for _ in ()).throw(RuntimeError("CUDA error: device-side assert")))
        second = begin(backend, pictures(8))

        np.testing.assert_allclose(first.result(), expected_of(pictures(8)), atol=1e-5)
        with pytest.raises(RuntimeError, match="device-side assert"):
            second.result()


def test_through_the_batcher_every_picture_gets_its_features() -> None:
    # Given the demo model on a device that works on its own, and pictures of two chunks
    model = load_model(DEMO_MODEL, Precision.FP32, "cpu", lambda towers, _: demo_on(towers, 16))
    plain = load_model(DEMO_MODEL, Precision.FP32, "cpu")
    random = np.random.default_rng(0)
    chunks = [random.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8) for count in (40, 23)]
    outcomes = [Outcomes(len(pixels)) for pixels in chunks]
    batcher = Batcher(16, ring_batches=100)
    for pixels, ended in zip(chunks, outcomes, strict=True):
        batcher.submit(ItemSlice(model, Lane.NORMAL, list(pixels), list(range(len(pixels))), ended))

    batcher.start()

    for pixels, ended in zip(chunks, outcomes, strict=True):
        ended.wait()
        assert cosines(np.stack(ended.features), plain.encode_images(pixels)).min() >= 0.99999  # type: ignore[arg-type]
    prompts = ["a photo of a cat", "moon"] * 40
    assert cosines(model.encode_texts(prompts), plain.encode_texts(prompts)).min() >= 0.99999
    batcher.stop()


def demo_on(towers: Towers, batch: int) -> CudaBackend:
    return CudaBackend(towers, FakeDevice(Schedule.ANYHOW), batch, Plain())  # type: ignore[arg-type]  # doubles


def test_a_loaded_model_tells_its_backend() -> None:
    model = load_model(DEMO_MODEL, Precision.FP32, "cpu", lambda towers, _: demo_on(towers, 4))

    assert isinstance(model, LoadedModel)
    assert (model.backend_name, model.batches_in_flight) == ("cuda", 2)


class TestCacheFolder:
    def test_it_is_the_owners_alone(self, tmp_path: Path) -> None:
        folder = private_folder(tmp_path / "deep" / "compiled")

        assert folder == tmp_path / "deep" / "compiled"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_one_that_others_may_read_is_closed(self, tmp_path: Path) -> None:
        (tmp_path / "compiled").mkdir(mode=0o777)

        assert stat.S_IMODE(private_folder(tmp_path / "compiled").stat().st_mode) == 0o700

    def test_it_lies_below_the_users_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", "/home/somebody")
        assert cache_folder() == Path("/home/somebody/.cache/clipfleet/compiled")

        monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/theirs")
        assert cache_folder() == Path("/var/cache/theirs/clipfleet/compiled")

    def test_where_nothing_can_be_written_nothing_is_compiled(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Given an installed triton, a cache that cannot be made, and no room for temporary files
        (tmp_path / "file").write_text("")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
        monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix: (tmp_path / "file" / prefix).mkdir())

        assert Compiler(tmp_path / "file" / "compiled").compiled(lambda rows: rows) is None
        assert "not compiled, which costs speed only" in caplog.text

    def test_without_triton_likewise(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        compiler = Compiler(tmp_path)

        assert [compiler.compiled(lambda rows: rows) for _ in range(2)] == [None, None]
        assert [record.getMessage() for record in caplog.records] == [
            "forward passes are not compiled, which costs speed only: triton is not installed"
        ]

    def test_a_link_is_not_followed(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "theirs").mkdir()
        (tmp_path / "compiled").symlink_to(tmp_path / "theirs")

        folder = private_folder(tmp_path / "compiled")

        assert folder.parent != tmp_path
        assert folder.stat().st_uid == os.getuid()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert "forgotten at the end" in caplog.text
        folder.rmdir()
