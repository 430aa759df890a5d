"""The CUDA backend without CUDA: on a device that puts its work off, what is not ordered goes wrong."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clipfleet_worker.encode.backends import PendingFeatures
from clipfleet_worker.encode.backends.certificate import GRAPH, PLAIN
from clipfleet_worker.encode.backends.cuda_backend import CudaBackend
from clipfleet_worker.encode.backends.cuda_device import CudaDevice, why_no_graphs
from clipfleet_worker.encode.backends.pixel_ring import PixelRing
from clipfleet_worker.encode.kept_arrays import keep
from tests.promises.test_backend import BATCH, TOKENS, Module, right_images, right_texts, towers
from tests.promises.test_backend import pixels as images
from tests.support.failing import failing
from tests.support.fake_device import FakeDevice, FakeStream, Schedule

Work = Callable[[], object]


def make(device: FakeDevice, way: str = PLAIN) -> CudaBackend:
    backend = CudaBackend(towers(), device, BATCH)
    backend.use(way)
    return backend


def require_right(pending: PendingFeatures, pixels: np.ndarray) -> None:
    np.testing.assert_allclose(pending.result(), right_images(pixels), atol=1e-5)


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
        pixels = images(count, seed)
        under_way.append((pixels, begin(backend, pixels)))
        if len(under_way) == backend.batches_in_flight or seed == len(counts) - 1:
            for _ in range(1 if seed < len(counts) - 1 else len(under_way)):
                sent, pending = under_way.popleft()
                difference = np.abs(pending.result() - right_images(sent)).max()
                worst = max(worst, float(np.nan_to_num(difference, nan=9.0)))
    return worst


def begin_seven(backend: CudaBackend) -> tuple[list[np.ndarray], list[PendingFeatures]]:
    """More batches than there are arrays."""
    batches = [images(8, n) for n in range(7)]
    return batches, [begin(backend, pixels) for pixels in batches]


ALL_SCHEDULES = [(schedule, 0) for schedule in Schedule] + [(Schedule.ANYHOW, seed) for seed in range(1, 6)]
COUNTS = [8, 8, 8, 3, 8, 1, 8, 8, 2, 7, 8, 8]


@pytest.mark.parametrize(("schedule", "seed"), ALL_SCHEDULES)
class TestOrder:
    @pytest.mark.parametrize("way", [PLAIN, GRAPH])
    def test_every_row_is_that_of_its_image(self, schedule: Schedule, seed: int, way: str) -> None:
        device = FakeDevice(schedule, seed)

        assert run_many(make(device, way), COUNTS) < 1e-5
        assert device.replays == (COUNTS.count(BATCH) if way == GRAPH else 0)

    def test_also_where_no_result_is_asked_for_until_the_end(self, schedule: Schedule, seed: int) -> None:
        batches, pending = begin_seven(make(FakeDevice(schedule, seed)))

        for pixels, features in zip(batches, pending, strict=True):
            require_right(features, pixels)

    def test_texts_and_pixels_from_elsewhere_go_in_between(self, schedule: Schedule, seed: int) -> None:
        backend, pixels = make(FakeDevice(schedule, seed)), images(8)
        tokens = torch.arange(150 * TOKENS).reshape(150, TOKENS) % 97
        first, second = begin(backend, pixels), backend.begin_images(pixels[::-1])

        np.testing.assert_allclose(backend.encode_texts(tokens), right_texts(tokens), atol=1e-5)
        require_right(first, pixels)
        require_right(second, pixels[::-1])


class TestTheDeviceItself:
    """It must find what is not ordered, or the tests above prove nothing."""

    @pytest.mark.parametrize(
        ("schedule", "owner", "name", "broken"),
        [
            (Schedule.LATE, PixelRing, "lend", lambda ring, n: ring._slots[ring._next].source[:n].numpy()),
            (Schedule.COPIES_FIRST, PixelRing, "note_read", lambda *_: None),
            (Schedule.FORWARDS_FIRST, FakeStream, "wait_for", lambda *_: None),
        ],
        ids=["lent before it was fetched", "written before it was read", "computed before it was there"],
    )
    def test_what_is_not_ordered_goes_wrong(
        self, monkeypatch: pytest.MonkeyPatch, schedule: Schedule, owner: type, name: str, broken: object
    ) -> None:
        monkeypatch.setattr(owner, name, broken)

        batches, pending = begin_seven(make(FakeDevice(schedule)))

        assert np.nanmax(np.abs(pending[0].result() - right_images(batches[0]))) > 0.01

    def test_features_are_not_there_before_somebody_waits(self) -> None:
        pending = begin(make(FakeDevice(Schedule.LATE)), images(8))

        assert not np.allclose(pending.features.numpy(), right_images(images(8)))


def refuses(largest: int, refused: list[int] | None = None) -> Callable[[Work], None]:
    """Passes of more rows find no memory."""

    def check(work: Work) -> None:
        size = len(work.args[-2])  # type: ignore[attr-defined]  # a partial of the rows and their features
        if size > largest:
            if refused is not None:
                refused.append(size)
            raise MemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    return check


class TestMemory:
    @pytest.fixture
    def device(self) -> FakeDevice:
        return FakeDevice()

    @pytest.fixture
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("clipfleet_worker.encode.backends.cuda_backend._FIRST_PATIENCE", 4)

    def test_what_was_too_much_is_free_before_less_is_tried(
        self, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # An exception holds on to the variables of the functions that it came through.
        made, alive = [], []
        backend = make(device)

        def check(work: Work) -> None:
            activations = Module()
            made.append(weakref.ref(activations))
            refuses(4)(work)

        device.before_run = check
        monkeypatch.setattr(device, "forget_freed", lambda: alive.append([one() for one in made]))

        begin(backend, images(8))

        assert alive == [[None]]

    def test_a_batch_that_does_not_fit_is_halved(self, caplog: pytest.LogCaptureFixture) -> None:
        device, refused = FakeDevice(Schedule.COPIES_FIRST), []
        backend = make(device)
        device.before_run = refuses(2, refused)

        assert run_many(backend, COUNTS) < 1e-5
        assert backend.largest_batch == 2
        assert refused == [8, 4]
        assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
            "no memory on the device for 8 rows at a time, trying 4",
            "no memory on the device for 4 rows at a time, trying 2",
        ]
        assert device.forgotten == 3  # once at the start

    def test_the_second_part_of_a_batch_may_find_no_memory(self, device: FakeDevice) -> None:
        backend, limits = make(device), iter([4, 4, 2, 2, 2, 2])
        device.before_run = lambda work: refuses(next(limits))(work)

        require_right(begin(backend, images(8)), images(8))
        assert backend.largest_batch == 2

    def test_what_was_halved_grows_again_once_others_have_gone(
        self, device: FakeDevice, impatient: None
    ) -> None:
        # Given a device that was full while many processes loaded
        backend = make(device, GRAPH)
        device.before_run = refuses(2)
        begin(backend, images(8)).result()
        device.before_run = refuses(8)

        for _ in range(10):
            require_right(begin(backend, images(8)), images(8))

        assert backend.largest_batch == BATCH
        assert device.replays > 0

    def test_where_it_stays_full_it_is_tried_ever_less_often(
        self, device: FakeDevice, impatient: None
    ) -> None:
        refused: list[int] = []
        backend, pixels = make(device), images(8)

        def batches_to_the_next_try() -> int:
            tried, batches = len(refused), 0
            while len(refused) == tried:
                begin(backend, pixels).result()
                batches += 1
            return batches

        device.before_run = refuses(4, refused)
        assert [batches_to_the_next_try() for _ in range(5)] == [1, 2, 4, 8, 16]

        # Given a device that was free for long, and is full again
        device.before_run = refuses(8)
        for _ in range(300):
            begin(backend, pixels).result()
        device.before_run = refuses(4, refused)
        assert [batches_to_the_next_try() for _ in range(2)] == [1, 2]

    def test_a_device_without_memory_for_one_image_says_so(self, device: FakeDevice) -> None:
        backend = make(device)
        device.before_run = refuses(0)

        with pytest.raises(MemoryError, match="Tried to allocate"):
            begin(backend, images(8))

        device.before_run = lambda work: None
        require_right(begin(backend, images(3)), images(3))

    def test_texts_are_halved_too(self, device: FakeDevice) -> None:
        backend = make(device)
        device.before_run = refuses(2)
        tokens = torch.arange(5 * TOKENS).reshape(5, TOKENS)

        np.testing.assert_allclose(backend.encode_texts(tokens), right_texts(tokens), atol=1e-5)

    def test_where_not_even_a_batch_fits_no_graph_is_recorded(self, device: FakeDevice) -> None:
        backend = make(device)
        device.before_run = refuses(4)
        begin(backend, images(8)).result()

        with pytest.raises(RuntimeError, match="only memory for 4 images at a time"):
            backend.use(GRAPH)


class TestGraphs:
    def test_none_is_replayed_once_they_are_off(self) -> None:
        device = FakeDevice()
        backends = [make(device, GRAPH) for _ in range(2)]

        backends[0].trust_only_plain("the canaries are off")

        assert [run_many(backend, COUNTS) < 1e-5 for backend in backends] == [True, True]
        assert device.replays == 0
        with pytest.raises(RuntimeError, match="the canaries are off"):
            backends[1].use(GRAPH)

    def test_an_older_torch_records_none(self) -> None:
        assert "torch 2.12.1+cu130 is older than 2.13" in why_no_graphs("2.12.1+cu130", ["a GPU"])
        assert why_no_graphs("2.13.0+cu130", ["a GPU"]) == ""

    def test_nor_does_the_process_after_one_that_has_failed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        why = np.frombuffer(b"a recording failed: operation not permitted", dtype=np.uint8)
        keep("graphs-off", ["a GPU", "2.13.0"], {"why": why})

        found = why_no_graphs("2.13.0", ["a GPU", "2.13.0"])

        (kept,) = tmp_path.glob("clipfleet/*")
        assert found == f"a recording failed: operation not permitted (remove {kept} to try again)"
        assert why_no_graphs("2.13.1", ["a GPU", "2.13.1"]) == ""


def test_what_goes_wrong_on_the_device_shows_at_the_result() -> None:
    device = FakeDevice()
    backend = make(device)
    first = begin(backend, images(8))
    device.forwards.run(failing(RuntimeError("CUDA error: device-side assert")))
    second = begin(backend, images(8))

    require_right(first, images(8))
    with pytest.raises(RuntimeError, match="device-side assert"):
        second.result()


class TestRecording:
    """`CudaDevice.recorded` with torch's part in it played by a double; tests/gpu has the real one."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        calls: list[str] = []

        def note(name: str) -> Callable[..., None]:
            return lambda *_: calls.append(name)

        @contextmanager
        def graph(*_: object, **options: object) -> Iterator[None]:
            calls.append(f"begin {options['capture_error_mode']}")
            yield
            calls.append("end")

        stream = SimpleNamespace(synchronize=note("settle"))
        for name, double in {
            "Stream": lambda device: stream,
            "stream": lambda stream: nullcontext(),
            "CUDAGraph": lambda: SimpleNamespace(replay=note("replay")),
            "graph": graph,
            "synchronize": note("synchronize"),
            "empty_cache": note("empty cache"),
            "get_device_name": lambda device: "a GPU",
        }.items():
            monkeypatch.setattr(torch.cuda, name, double)
        clear = "_cuda_clearCublasWorkspaces"
        monkeypatch.setattr(torch._C, clear, note("clear workspaces"), raising=False)
        return calls

    def test_the_workspaces_are_cleared_right_before_and_right_after(self, calls: list[str]) -> None:
        device = CudaDevice("cuda:0")
        rows = torch.ones((2, 3))

        def forward(rows: torch.Tensor) -> torch.Tensor:
            calls.append("forward")
            return rows * 2

        graph = device.recorded(forward, rows)

        steps = ["clear workspaces", "begin thread_local", "forward", "end", "clear workspaces"]
        assert calls == ["forward", "synchronize", *steps]
        given, features = torch.zeros((2, 3)), torch.empty((2, 3))
        graph(given, features)
        assert rows.tolist() == given.tolist()
        assert features.tolist() == [[2.0] * 3] * 2  # of the recording: here a replay computes nothing
        assert calls.pop() == "replay"
        device.forget_freed()
        assert calls[-1] == "empty cache"

    @pytest.mark.parametrize(
        ("error", "is_noted"),
        [(RuntimeError("operation not permitted"), True), (torch.OutOfMemoryError("2 GiB"), False)],
    )
    def test_one_that_fails_is_the_last_one(self, calls: list[str], error: Exception, is_noted: bool) -> None:
        device, tries = CudaDevice("cuda:0"), iter([None])

        def forward(rows: torch.Tensor) -> torch.Tensor:
            if next(tries, "second") == "second":
                raise error
            return rows

        with pytest.raises((RuntimeError, MemoryError)):
            device.recorded(forward, torch.ones(1))

        assert calls[-1] == "clear workspaces"
        assert str(error) in device.graphs_off
        device.forget_freed()  # torch may believe that the recording goes on
        assert "empty cache" not in calls
        assert (str(error) in CudaDevice("cuda:0").graphs_off) is is_noted
