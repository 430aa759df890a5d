"""A job id that is repeated: refused over a source that has changed since, resumed over the same one."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.contract.jobs import JobState
from clipfleet.errors import SourceChangedError, UsageError
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger
from clipfleet.settings import Settings
from clipfleet.submit import submission
from tests.support.ledger import server_now_ms, work_off
from tests.support.s3 import S3Bucket
from tests.support.shards import tar_bytes

ITEMS = 1000
FILE_BYTES = 3
TIME_NS = 1_700_000_000_000_000_000


class Pile(ABC):
    """A thousand files or objects, and the source that holds them."""

    source: Any

    def fill(self, count: int = ITEMS) -> None:
        for number in range(count):
            self.add(f"{number:04d}")

    @abstractmethod
    def add(self, name: str) -> None: ...

    @abstractmethod
    def remove(self, name: str) -> None: ...

    @abstractmethod
    def touch(self, name: str) -> None:
        """The same name, other content."""


class Files(Pile):
    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self.source = str(folder / source)
        folder.mkdir()

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.jpg"

    def add(self, name: str) -> None:
        self.path(name).write_bytes(b"x" * FILE_BYTES)
        os.utime(self.path(name), ns=(TIME_NS, TIME_NS))

    def remove(self, name: str) -> None:
        self.path(name).unlink()

    def touch(self, name: str) -> None:
        os.utime(self.path(name), ns=(TIME_NS, TIME_NS + 1))


class Objects(Pile):
    def __init__(self, bucket: S3Bucket, pattern: str = "") -> None:
        self.bucket = bucket
        self.source = f"{bucket.uri}/p/{pattern}"

    def add(self, name: str) -> None:
        self.bucket.put(f"p/{name}.jpg", b"x" * FILE_BYTES)

    def remove(self, name: str) -> None:
        self.bucket.client.delete_object(Bucket=self.bucket.name, Key=f"p/{name}.jpg")

    def touch(self, name: str) -> None:
        self.bucket.put(f"p/{name}.jpg", b"y" * FILE_BYTES)


class Listed(Files):
    """Files that a manifest names; a row comes and goes with its file, once it is written."""

    def __init__(self, folder: Path, kind: str) -> None:
        super().__init__(folder, f"list.{kind}")
        self._kind = kind
        self._names: list[str] = []

    def fill(self, count: int = ITEMS) -> None:
        super().fill(count)
        self.write()

    def add(self, name: str) -> None:
        super().add(name)
        self._names.append(name)

    def remove(self, name: str) -> None:
        super().remove(name)
        self._names.remove(name)

    def write(self) -> None:
        rows = [{"url": f"{name}.jpg", "id": name, "boxes": [[1, 2], [3]]} for name in self._names]
        path = Path(self.source)
        if self._kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif self._kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif self._kind == "csv":
            path.write_text("url,id\n" + "".join(f"{row['url']},{row['id']}\n" for row in rows))
        else:
            path.write_text("".join(f"{row['url']}\n" for row in rows))


MANIFESTS = ("txt", "csv", "jsonl", "parquet")
PILES: dict[str, Callable[[Path, S3Bucket], Pile]] = {
    "folder": lambda folder, _: Files(folder / "p", ""),
    "glob": lambda folder, _: Files(folder / "p", "*.jpg"),
    "s3": lambda _, bucket: Objects(bucket),
    "s3 pattern": lambda _, bucket: Objects(bucket, "*.jpg"),
    **{kind: lambda folder, _, kind=kind: Listed(folder / "p", kind) for kind in MANIFESTS},
}


class Bed:
    """A client, and the options of a job that is submitted again and again."""

    def __init__(self, redis_url: str, output: Path | None) -> None:
        self.client = Client(Settings(redis_url=redis_url))  # type: ignore[arg-type]
        self.output = output

    def submit(self, source: Any, *, check_source: bool = False) -> JobHandle:
        options = JobOptions(
            output=self.output, model="demo", job_id="night", chunk_size=512, check_source=check_source
        )
        return self.client.embed(source, options=options)

    def refuses(self, source: Any) -> str:
        before = self.client.job("night").status()
        with pytest.raises(SourceChangedError) as caught:
            self.submit(source)
        assert self.client.job("night").status() == before
        return str(caught.value)


@pytest.fixture
def bed(redis_url: str, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(redis_url, tmp_path / "out")
    yield bed
    bed.client.close()


@pytest.mark.parametrize("kind", PILES)
def test_one_item_of_a_thousand_is_noticed(
    bed: Bed, ledger: Ledger, tmp_path: Path, s3: S3Bucket, kind: str
) -> None:
    pile = PILES[kind](tmp_path, s3)
    pile.fill()
    bed.submit(pile.source)

    job = bed.submit(pile.source)
    assert (job.had_ended, job.status().total) == (False, ITEMS), "unchanged, it is returned"
    assert len(work_off(ledger)) == 2

    pile.touch("0500")
    assert bed.refuses(pile.source) == (
        "job night holds 1,000 items, and the source has changed since: choose another --job-id"
    )


@pytest.mark.parametrize("kind", ["folder", "glob", "s3", "s3 pattern"])
def test_an_item_more_or_less_is_counted(bed: Bed, tmp_path: Path, s3: S3Bucket, kind: str) -> None:
    pile = PILES[kind](tmp_path, s3)
    pile.fill()
    bed.submit(pile.source)

    pile.add("more")
    assert bed.refuses(pile.source) == (
        "job night holds 1,000 items; the source now has 1,001: choose another --job-id"
    )
    pile.remove("more")
    pile.remove("0001")
    assert bed.refuses(pile.source) == (
        "job night holds 1,000 items; the source now has 999: choose another --job-id"
    )
    pile.add("another")
    assert "the source has changed since" in bed.refuses(pile.source)


@pytest.mark.parametrize("kind", MANIFESTS)
@pytest.mark.parametrize("is_more", [True, False], ids=["more", "less"])
def test_a_row_more_or_less_is_another_manifest(bed: Bed, tmp_path: Path, kind: str, is_more: bool) -> None:
    pile = Listed(tmp_path / "p", kind)
    pile.fill()
    bed.submit(pile.source)

    if is_more:
        pile.add("more")
    else:
        pile.remove("0001")
    pile.write()

    with pytest.raises(UsageError, match=r"job 'night' exists and differs in: source"):
        bed.submit(pile.source)


def test_shards_in_s3_of_the_same_size(bed: Bed, s3: S3Bucket) -> None:
    for data in (b"one", b"two"):
        uri = s3.put("a.tar", tar_bytes([("1.jpg", data)]))
    bed.submit(uri)

    bed.submit(uri)
    s3.put("a.tar", tar_bytes([("2.jpg", b"two")]))

    assert "the source has changed since" in bed.refuses(uri)


@pytest.mark.parametrize("is_redis", [False, True], ids=["folder", "redis"])
@pytest.mark.parametrize("count", [0, 1, ITEMS - 1])
def test_a_program_that_gives_other_items(bed: Bed, is_redis: bool, count: int) -> None:
    def urls(count: int) -> Iterator[str]:
        yield from (f"https://example.org/{number}.jpg" for number in range(count))

    bed.output = None if is_redis else bed.output
    bed.submit(urls(ITEMS))

    assert bed.submit(urls(ITEMS)).status().total == ITEMS
    with pytest.raises(UsageError, match=f"now has {count}: " if count else "there are no items"):
        bed.submit(urls(count))


@pytest.mark.parametrize("state", [JobState.PAUSED, JobState.CANCELLED, JobState.COMPLETED])
def test_in_whatever_state_the_job_is(
    bed: Bed, ledger: Ledger, redis_client: redis.Redis, tmp_path: Path, state: JobState
) -> None:
    pile = Files(tmp_path / "p", "")
    pile.fill(10)
    job = bed.submit(pile.source)
    if state is JobState.PAUSED:
        job.pause()
    elif state is JobState.CANCELLED:
        job.cancel()
    else:
        redis_client.hset(
            keys.job("night"), mapping={"state": state, "finished_ms": server_now_ms(redis_client)}
        )

    again = bed.submit(pile.source)
    assert (again.status().state, again.had_ended) == (state, state is not JobState.PAUSED)
    pile.add("more")
    assert "holds 10 items; the source now has 11" in bed.refuses(pile.source)


def test_a_submit_that_was_interrupted_adds_up_all_items(bed: Bed, tmp_path: Path) -> None:
    pile = Files(tmp_path / "p", "")
    pile.fill()
    whole = bed.submit(pile.source).status().source_sum
    names = [pile.source + f"/{number:04d}.jpg" for number in range(ITEMS)]
    items = [{"url": uri, "id": uri[-8:]} for uri in names]

    def broken() -> Iterator[dict[str, str]]:
        yield from items[:600]
        raise KeyboardInterrupt

    resumed = JobOptions(output=tmp_path / "resumed", model="demo", job_id="resumed", chunk_size=100)
    with pytest.raises(KeyboardInterrupt):
        bed.client.embed(broken(), options=resumed)
    assert not bed.client.job("resumed").status().sealed

    status = bed.client.embed(iter(items), options=resumed).status()

    once = JobOptions(output=tmp_path / "once", model="demo", job_id="once", chunk_size=100)
    assert status.source_sum == bed.client.embed(iter(items), options=once).status().source_sum != whole


def test_a_job_that_was_rebuilt(bed: Bed, redis_client: redis.Redis, tmp_path: Path) -> None:
    pile = Files(tmp_path / "p", "")
    pile.fill(10)
    bed.submit(pile.source)
    redis_client.flushall()
    bed.client.rebuild(tmp_path / "out")

    assert bed.submit(pile.source).status().total == 10
    pile.touch("0005")
    assert "the source has changed since" in bed.refuses(pile.source)


def test_a_job_of_an_older_version_is_compared_with_nothing(
    bed: Bed, redis_client: redis.Redis, tmp_path: Path
) -> None:
    pile = Files(tmp_path / "p", "")
    pile.fill(10)
    bed.submit(pile.source)
    redis_client.hdel(keys.job("night"), "source_sum")
    pile.add("more")

    assert bed.submit(pile.source).status().total == 10


def test_so_many_items_are_compared_only_on_demand(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "MAX_CHECKED_ITEMS", 9)
    pile = Files(tmp_path / "p", "")
    pile.fill(10)
    bed.submit(pile.source)
    pile.add("more")

    bed.submit(pile.source)
    with pytest.raises(SourceChangedError, match=r"the source now has more than 10: "):
        bed.submit(pile.source, check_source=True)
    pile.remove("more")
    bed.submit(pile.source, check_source=True)


def test_the_ledger_of_a_source_that_cannot_be_listed_stays(bed: Bed, tmp_path: Path) -> None:
    pile = Files(tmp_path / "p", "")
    pile.fill(10)
    bed.submit(pile.source)
    for path in pile.folder.iterdir():
        path.unlink()

    with pytest.raises(UsageError, match="no images found"):
        bed.submit(pile.source)
    assert bed.client.job("night").status().total == 10
