"""Jobs that are cancelled and overwritten at once, while their workers hold chunks or are frozen."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from clipfleet.client import Client, JobOptions
from clipfleet.contract.jobs import JobState, PartFormat
from clipfleet.job_handle import JobHandle
from clipfleet.ledger import keys
from clipfleet.outputs import objects, open_output
from tests.support.cluster import WorkerProcess
from tests.support.waiting import wait_until

BEFORE_ITEMS, AFTER_ITEMS, CHUNK_SIZE = 4000, 40, 8
WAIT_SECONDS = 120.0


@dataclass(frozen=True)
class Place:
    """Where results go, and how."""

    output: str
    part_format: PartFormat

    @property
    def part_names(self) -> list[str]:
        """Names of the parts that lie there."""
        return [
            name
            for name in open_output(self.output).names(objects.LAYOUT.part_prefix)
            if objects.is_part(name)
        ]


@dataclass(frozen=True)
class Overwrite:
    """How one of them went."""

    state: JobState
    foreign_rows: int
    rows: int
    surplus_parts: int
    seconds: float  # from the cancel until the overwrite has staged its items


class Overwriter:
    """Overwrites again and again, with delays and freezes by a seed."""

    def __init__(
        self,
        client: Client,
        server: redis.Redis,
        workers: Sequence[WorkerProcess],
        images: Sequence[Path],
        seed: int,
    ) -> None:
        self._client = client
        self._server = server
        self._workers = workers
        self._images = images
        self._random = random.Random(seed)

    def run(self, number: int, place: Place, *, freezes: bool = True) -> Overwrite:
        """Submit a job, cancel it while chunks of it are leased, overwrite it, and look at what is there."""
        before = self._submit(f"before-{number}", BEFORE_ITEMS, place)
        ledger = self._client.job(before)
        wait_until(lambda: ledger.status().leased_chunks > 0, "workers hold chunks", WAIT_SECONDS)
        time.sleep(self._random.uniform(0, 0.5))
        with self._freezing(self._random.choice([0, 1, 2]) if freezes else 0):
            time.sleep(self._random.uniform(0, 0.2) if freezes else 0)
            cancelled = time.monotonic()
            ledger.cancel()
            time.sleep(self._random.choice([0, self._random.uniform(0, 3)]) if freezes else 0)
            after = self._overwrite(number, place)
            seconds = time.monotonic() - cancelled
            after.wait(WAIT_SECONDS)
        return self._found(number, place, after, seconds)

    def run_frozen(self, number: int, place: Place, worker: WorkerProcess, flag: Path) -> Overwrite:
        """The same while a worker is stopped inside a write, where it finds the flag."""
        flag.touch()
        stat = Path("/proc", str(worker.pid), "stat")
        with self._all_frozen():  # otherwise they would do the whole job first
            before = self._submit(f"before-{number}", BEFORE_ITEMS, place)
            wait_until(lambda: ") T " in stat.read_text(), "it is stopped inside a write", WAIT_SECONDS)
        cancelled = time.monotonic()
        self._client.job(before).cancel()
        after = self._overwrite(number, place)
        seconds = time.monotonic() - cancelled
        after.wait(WAIT_SECONDS)
        worker.thaw()
        return self._found(number, place, after, seconds)

    def _overwrite(self, number: int, place: Place) -> JobHandle:
        return self._client.job(self._submit(f"after-{number}", AFTER_ITEMS, place, overwrite=True))

    def _found(self, number: int, place: Place, after: JobHandle, seconds: float) -> Overwrite:
        """What is there once all frozen workers have continued and given up the old job."""
        writers = keys.job(f"before-{number}", keys.WRITERS)
        wait_until(lambda: not self._server.exists(writers), "frozen workers have continued", WAIT_SECONDS)
        chunks = -(-AFTER_ITEMS // CHUNK_SIZE)
        names = [objects.LAYOUT.part(chunk, place.part_format) for chunk in range(chunks)]
        rows = [row["item_id"] for row in after.results()]
        return Overwrite(
            state=after.status().state,
            foreign_rows=sum(not item_id.startswith(f"after-{number}-") for item_id in rows),
            rows=len(rows),
            surplus_parts=len(set(place.part_names) - set(names)),
            seconds=seconds,
        )

    def _submit(self, job_id: str, items: int, place: Place, *, overwrite: bool = False) -> str:
        images = (
            {"uri": str(self._images[n % len(self._images)]), "id": f"{job_id}-{n}"} for n in range(items)
        )
        options = JobOptions(
            output=place.output, job_id=job_id, chunk_size=CHUNK_SIZE, part_format=place.part_format,
            overwrite=overwrite, model="demo", id_column="id",
        )  # fmt: skip
        return self._client.embed(list(images), options=options).job_id

    @contextmanager
    def _all_frozen(self) -> Iterator[None]:
        """Freeze all workers."""
        for worker in self._workers:
            worker.freeze()
        try:
            yield
        finally:
            for worker in self._workers:
                worker.thaw()

    @contextmanager
    def _freezing(self, count: int) -> Iterator[None]:
        """Some workers are frozen for a time around what happens in the context, at most to its end."""
        ended = threading.Event()
        threads = [
            threading.Thread(target=self._freeze, args=(worker, ended, *self._times()))
            for worker in self._random.sample(list(self._workers), count)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def _times(self) -> tuple[float, float]:
        return self._random.uniform(0, 0.5), self._random.uniform(0.1, 8)

    def _freeze(self, worker: WorkerProcess, ended: threading.Event, delay: float, seconds: float) -> None:
        ended.wait(delay)
        worker.freeze()
        ended.wait(seconds)
        worker.thaw()
