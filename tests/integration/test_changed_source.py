"""A job id that is repeated: refused over a source that has changed since, resumed over the same one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.contract.jobs import JobState
from clipfleet.errors import JobConflictError, SourceChangedError, UsageError
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger
from clipfleet.settings import Settings
from clipfleet.submit import submission
from tests.support.ledger import server_now_ms, work_off
from tests.support.s3 import S3Bucket
from tests.support.shards import tar_bytes

ITEMS = 1000
TIME_NS = 1_700_000_000_000_000_000


class Files:
    """Files, and the source that holds them. What is touched has its old name and other content."""

    def __init__(self, folder: Path, source: str = "") -> None:
        self.folder = folder
        self.source = str(folder / source)
        folder.mkdir()

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.jpg"

    def add(self, name: str) -> None:
        self.path(name).write_bytes(b"xxx")
        self._set_time(name, TIME_NS)

    def remove(self, name: str) -> None:
        self.path(name).unlink()

    def touch(self, name: str) -> None:
        self._set_time(name, TIME_NS + 1)

    def _set_time(self, name: str, time_ns: int) -> None:
        os.utime(self.path(name), ns=(TIME_NS, time_ns))


class Objects:
    def __init__(self, bucket: S3Bucket, pattern: str = "") -> None:
        self.bucket = bucket
        self.source = f"{bucket.uri}/p/{pattern}"

    def add(self, name: str, data: bytes = b"xxx") -> None:
        self.bucket.put(f"p/{name}.jpg", data)

    def remove(self, name: str) -> None:
        self.bucket.client.delete_object(Bucket=self.bucket.name, Key=f"p/{name}.jpg")

    def touch(self, name: str) -> None:
        self.add(name, b"yyy")


Pile = Files | Objects


class Listed(Files):
    """Files that a manifest names; a row comes and goes with its file, once it is written."""

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.jpg"))

    def write(self) -> None:
        path = Path(self.source)
        rows = [{"url": f"{name}.jpg", "id": name, "boxes": [[1, 2], [3]]} for name in self.names()]
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
            return
        as_line: Callable[[Any], str] = {
            ".jsonl": json.dumps,
            ".csv": lambda row: f"{row['url']},{row['id']}",
            ".txt": lambda row: row["url"],
        }[path.suffix]
        lines = [*(["url,id"] if path.suffix == ".csv" else []), *map(as_line, rows)]
        path.write_text("".join(f"{line}\n" for line in lines))


MANIFESTS = ("txt", "csv", "jsonl", "parquet")
PILES: dict[str, Callable[[Path, S3Bucket], Pile]] = {
    "folder": lambda folder, _: Files(folder / "p"),
    "glob": lambda folder, _: Files(folder / "p", "*.jpg"),
    "s3": lambda _, bucket: Objects(bucket),
    "s3 pattern": lambda _, bucket: Objects(bucket, "*.jpg"),
    **{kind: lambda folder, _, kind=kind: Listed(folder / "p", f"list.{kind}") for kind in MANIFESTS},
}


class Bed:
    """A client, and the options of a job that is submitted again and again."""

    def __init__(self, redis_url: str, output: Path | None) -> None:
        self.client = Client(Settings(redis_url=redis_url))  # type: ignore[arg-type]
        self.output = output

    def submit(self, source: Any, *, check_source: bool = False) -> JobHandle:
        options = JobOptions(output=self.output, model="demo", job_id="night", check_source=check_source)
        return self.client.embed(source, options=options)

    def given(self, pile: Pile, count: int = ITEMS) -> JobHandle:
        """A job over so many items."""
        for number in range(count):
            pile.add(f"{number:04d}")
        if isinstance(pile, Listed):
            pile.write()
        return self.submit(pile.source)

    def check_refuses(self, source: str, words: str) -> None:
        before = self.client.job("night").status()
        with pytest.raises(SourceChangedError) as caught:
            self.submit(source)
        assert self.client.job("night").status() == before
        assert str(caught.value) == f"job night holds {words}: choose another `job_id=`"


CHANGED = "and the source has changed since"


@pytest.fixture
def bed(redis_url: str, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(redis_url, tmp_path / "out")
    yield bed
    bed.client.close()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "p")


@pytest.fixture(params=PILES)
def pile(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Bucket) -> Pile:
    return PILES[request.param](tmp_path, s3)


def test_one_item_of_a_thousand_is_noticed(bed: Bed, ledger: Ledger, pile: Pile) -> None:
    bed.given(pile)

    job = bed.submit(pile.source)
    assert (job.had_ended, job.status().total) == (False, ITEMS), "unchanged, it is returned"
    assert len(work_off(ledger)) == 9

    pile.touch("0500")
    bed.check_refuses(pile.source, f"1,000 items, {CHANGED}")


@pytest.mark.parametrize("pile", sorted({*PILES} - {*MANIFESTS}), indirect=True)
def test_an_item_more_or_less_is_counted(bed: Bed, pile: Pile) -> None:
    bed.given(pile)

    pile.add("more")
    bed.check_refuses(pile.source, "1,000 items; the source now has 1,001")
    pile.remove("more")
    pile.remove("0001")
    bed.check_refuses(pile.source, "1,000 items; the source now has 999")
    pile.add("another")
    bed.check_refuses(pile.source, f"1,000 items, {CHANGED}")


@pytest.mark.parametrize("kind", MANIFESTS)
@pytest.mark.parametrize("is_more", [True, False], ids=["more", "less"])
def test_a_row_more_or_less_is_another_manifest(bed: Bed, tmp_path: Path, kind: str, is_more: bool) -> None:
    pile = Listed(tmp_path / "p", f"list.{kind}")
    bed.given(pile, 10)

    pile.add("more") if is_more else pile.remove("0001")
    pile.write()

    with pytest.raises(UsageError, match=r"job 'night' exists and differs in: source"):
        bed.submit(pile.source)


def test_shards_in_s3_of_the_same_size(bed: Bed, s3: S3Bucket) -> None:
    for data in (b"one", b"two"):
        uri = s3.put("a.tar", tar_bytes([("1.jpg", data)]))
    bed.submit(uri)

    bed.submit(uri)
    s3.put("a.tar", tar_bytes([("2.jpg", b"two")]))

    bed.check_refuses(uri, f"1 item, {CHANGED}")


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
def test_in_any_state(bed: Bed, redis_client: redis.Redis, files: Files, state: JobState) -> None:
    job = bed.given(files, 10)
    if state is JobState.PAUSED:
        job.pause()
    elif state is JobState.CANCELLED:
        job.cancel()
    else:
        changes = {"state": state, "finished_ms": server_now_ms(redis_client)}
        redis_client.hset(keys.job("night"), mapping=changes)

    again = bed.submit(files.source)
    assert (again.status().state, again.had_ended) == (state, state is not JobState.PAUSED)
    files.add("more")
    bed.check_refuses(files.source, "10 items; the source now has 11")


@pytest.mark.parametrize("is_redis", [False, True], ids=["folder", "redis"])
def test_a_small_source_that_grows_is_still_that_of_the_same_job(
    bed: Bed, redis_client: redis.Redis, files: Files, is_redis: bool
) -> None:
    bed.output = None if is_redis else bed.output
    assert bed.given(files, 100).status().chunks == 7
    if not is_redis:
        redis_client.flushall()  # the output knows the job, too

    assert bed.submit(files.source).status().chunks == 7
    for number in range(500):
        files.add(f"more-{number}")
    bed.check_refuses(files.source, "100 items; the source now has 600")


def test_a_given_chunk_size_must_be_that_of_the_job(bed: Bed, files: Files) -> None:
    bed.given(files, 100)

    options = JobOptions(output=bed.output, model="demo", job_id="night", chunk_size=50)
    with pytest.raises(JobConflictError, match="chunk_size"):
        bed.client.embed(files.source, options=options)


def test_a_submit_that_was_interrupted_adds_up_all_items(bed: Bed, tmp_path: Path) -> None:
    items = [{"url": f"/p/{number:04d}.jpg", "id": f"{number:04d}"} for number in range(ITEMS)]

    def options(job_id: str) -> JobOptions:
        return JobOptions(output=tmp_path / job_id, model="demo", job_id=job_id, chunk_size=100)

    def broken() -> Iterator[dict[str, str]]:
        yield from items[:600]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bed.client.embed(broken(), options=options("resumed"))
    assert not bed.client.job("resumed").status().sealed

    resumed, once, other = (
        bed.client.embed(iter(given), options=options(job_id)).status().source_sum
        for job_id, given in (("resumed", items), ("once", items), ("other", items[1:]))
    )
    assert resumed == once != other


def test_a_job_that_was_rebuilt(bed: Bed, redis_client: redis.Redis, files: Files, tmp_path: Path) -> None:
    bed.given(files, 10)
    redis_client.flushall()
    bed.client.rebuild(tmp_path / "out")

    assert bed.submit(files.source).status().total == 10
    files.touch("0005")
    bed.check_refuses(files.source, f"10 items, {CHANGED}")


def test_a_job_of_an_older_version_is_not_compared(bed: Bed, redis_client: redis.Redis, files: Files) -> None:
    bed.given(files, 10)
    redis_client.hdel(keys.job("night"), "source_sum")
    files.add("more")

    assert bed.submit(files.source).status().total == 10


def test_many_items_are_compared_on_demand(bed: Bed, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "MAX_CHECKED_ITEMS", 9)
    bed.given(files, 10)
    files.add("more")

    bed.submit(files.source)
    with pytest.raises(SourceChangedError, match=r"the source now has more than 10: "):
        bed.submit(files.source, check_source=True)
    files.remove("more")
    bed.submit(files.source, check_source=True)


def test_the_ledger_of_a_source_that_cannot_be_listed_stays(bed: Bed, files: Files) -> None:
    bed.given(files, 1)
    files.remove("0000")

    with pytest.raises(UsageError, match="no images found"):
        bed.submit(files.source)
    assert bed.client.job("night").status().total == 1
