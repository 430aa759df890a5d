"""What a store is and what became of it, as `store info` and `store log` print it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.jobs import Ledger
from clipfleet.store.committing.commit import COUNTS
from clipfleet.store.committing.of_job import COMPARED_SAME, KIND
from clipfleet.store.dataset import IndexFacts, VectorDataset, Version
from clipfleet.store.in_use import unfinished_jobs
from clipfleet.store.place import StoreFile, StorePlace
from clipfleet.store.rows import PRESENT
from clipfleet.store.versions import current_dataset_if_there
from clipfleet.terminal.console import printable
from clipfleet.wording import size_words

_CREATE = "create"  # kind of the first version, which has no rows


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What the dataset of the current model holds."""

    version: int  # the newest
    rows: int  # of items that the source has
    gone: int  # rows that are kept of others
    versions: int
    oldest_at: datetime  # UTC
    newest_at: datetime
    stored_bytes: int  # of all versions
    index: IndexFacts | None


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What a store is."""

    uri: str
    store: StoreFile
    dataset: DatasetFacts | None  # None: no job has finished yet
    jobs: tuple[str, ...] | None  # that fill or read it and have not ended; None: not known without a ledger
    redis_is_away: bool = False  # which is why they are not known


def store_facts(place: StorePlace, ledger: Ledger | None) -> StoreFacts:
    """Look at a store.

    Raises:
        UsageError: there is no store.
        OutputUnavailableError: it cannot be read.
    """
    store, dataset = current_dataset_if_there(place)
    jobs, is_away = None, False
    try:
        jobs = None if ledger is None else unfinished_jobs(ledger, place, store.store_id)
    except RedisUnavailableError:
        is_away = True
    return StoreFacts(
        place.uri,
        store,
        None if dataset is None else _dataset_facts(dataset),
        None if jobs is None else tuple(job.job_id for job in jobs),
        is_away,
    )


def _dataset_facts(dataset: VectorDataset) -> DatasetFacts:
    rows, present, times = dataset.count(), dataset.count(PRESENT), dataset.times()
    return DatasetFacts(
        dataset.version, present, rows - present, len(times), min(times.values()), max(times.values()),
        dataset.stored_bytes(), dataset.index_facts(),
    )  # fmt: skip


def info_document(facts: StoreFacts) -> dict[str, Any]:
    """A store as `--json` prints it."""
    store, found = facts.store, facts.dataset
    migration = store.migration
    return {
        "store": facts.uri,
        "store_id": store.store_id,
        "created_at": store.created_at.isoformat(),
        **store.current.model_dump(mode="json"),
        "version": found.version if found else 0,
        "rows": found.rows if found else 0,
        "gone": found.gone if found else 0,
        "versions": found.versions if found else 0,
        "bytes": found.stored_bytes if found else 0,
        "index": _index_object(found.index) if found and found.index else None,
        "migration": None if migration is None else migration.model_dump(mode="json"),
        "jobs": facts.jobs,
    }


def _index_object(index: IndexFacts) -> dict[str, Any]:
    return {"kind": index.kind, "rows": index.rows, "bytes": index.stored_bytes}


def info_lines(facts: StoreFacts) -> Iterator[str]:
    """A store as `clipfleet store info` prints it."""
    current, found = facts.store.current, facts.dataset
    yield f"store        {facts.uri}"
    yield f"model        {current.model}, precision {current.precision}"
    yield f"images       decode {current.decode}, exif {current.exif}"
    if found is None:
        yield "rows         none yet: no job that fills the store has finished"
    else:
        yield f"fingerprint  {current.fingerprint}"
        yield f"dimension    {current.dimension}"
        yield f"rows         {found.rows:,}" + (f", and {found.gone:,} of gone items" if found.gone else "")
        yield f"versions     {found.versions:,}, {_utc(found.oldest_at)} to {_utc(found.newest_at)}"
        yield f"newest       {found.version}"
        yield f"size         {size_words(found.stored_bytes)}"
        if found.index is not None:
            covered = f"{found.index.rows:,} of {found.rows + found.gone:,} rows"
            yield f"index        {found.index.kind}, {covered}"
    if facts.store.migration is not None:
        migration = facts.store.migration
        yield f"migration    to {migration.to.model}, since {_utc(migration.began_at)}"
    if facts.jobs is not None:
        yield f"jobs         {', '.join(facts.jobs) or 'none'}"
    elif facts.redis_is_away:
        yield "jobs         unknown (Redis is away)"


def version_object(version: Version) -> dict[str, Any]:
    """A version as `store log --json` prints it."""
    found = version.properties
    return {
        "version": version.number,
        "at": version.at.isoformat(),
        "kind": _kind(version),
        "job_id": found.get("job_id"),
        "counts": _counts(version),
    }


def version_table(versions: Sequence[Version]) -> Table:
    """Versions as `store log` prints them."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("version", "at (UTC)", "kind", "job", "changes"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "version" else "left")
    for one in versions:
        found = one.properties
        changes = ", ".join(f"{count:,} {name}" for name, count in _counts(one).items() if count)
        cells = str(one.number), _utc(one.at), _kind(one) or "", found.get("job_id", ""), changes
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _kind(version: Version) -> str | None:
    """What the version is of; None: another program has committed it."""
    return version.properties.get(KIND, _CREATE if version.number == 1 else None)


def _counts(version: Version) -> dict[str, int]:
    found: dict[str, int] = json.loads(version.properties.get(COUNTS, "{}"))
    if "same" in found:  # of those that the job has asked
        found["same"] += int(version.properties.get(COMPARED_SAME, 0))
    return found


def _utc(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}"
