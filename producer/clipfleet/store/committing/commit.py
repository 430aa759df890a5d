"""Commits a night: all of its changes become visible in one version, or none of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.parts import ItemStatus
from clipfleet.errors import OutputConflictError
from clipfleet.store.committing.matching import NOWHERE, Matches, match
from clipfleet.store.committing.night import RENEWED, Night, as_stored, of_status, own_fields
from clipfleet.store.dataset import Alive, VectorDataset, VersionConflictError
from clipfleet.store.rows import OWN_COLUMNS, TIME_TYPE

if TYPE_CHECKING:
    import numpy as np

COUNTS = "counts"  # property of a version, as JSON: of a night its `Counts`
_ROWS_AT_A_TIME = 4096


@dataclass(frozen=True, slots=True)
class Counts:
    """What a commit did with the items of its night."""

    new: int = 0
    changed: int = 0
    copied: int = 0  # of both: the vector was that of an equal image
    same: int = 0  # with those whose images another night has embedded since the comparison
    failed: int = 0  # what the store has of them stays as it is
    late: int = 0  # likewise: another program has committed them meanwhile
    gone: int = 0
    expired: int = 0  # rows of items that have been gone for long enough


@dataclass(frozen=True)
class Committed:
    """The dataset at the version with the night in it."""

    dataset: VectorDataset
    counts: Counts


def commit_night(
    dataset: VectorDataset,
    night: Night,
    properties: Mapping[str, str],
    *,
    since: int,
    alive: Alive = lambda: None,
) -> Committed:
    """Commit a night, unless a version has its properties already. Idempotent.

    Args:
        dataset: at any version; the newest is taken, again and again while other programs are faster.
        night: with rows of this dataset's model.
        properties: that tell this commit from every other one; the counts are added.
        since: the version that the night was compared with; 0: none.
        alive: called often; what it raises ends the commit, and nothing is changed.

    Raises:
        OutputConflictError: a column has another type than in the dataset.
        OutputUnavailableError: the dataset or the rows cannot be read or written.
    """
    while True:
        latest = dataset.latest()
        done = _found(latest, properties, since)
        if done is not None:
            return done
        try:
            # Another night may have embedded the same images since the comparison.
            others = any(COUNTS in one.properties for one in latest.versions(after=since))
            latest = _with_own_columns(latest, night, properties)
            return _commit(latest, night, properties, alive, others=others)
        except VersionConflictError:
            alive()


def _found(dataset: VectorDataset, properties: Mapping[str, str], since: int) -> Committed | None:
    """The commit with these properties, if there is one after a version."""
    for version in dataset.versions(after=since):
        if COUNTS in version.properties and properties.items() <= version.properties.items():
            return Committed(dataset, Counts(**json.loads(version.properties[COUNTS])))
    return None


def _with_own_columns(dataset: VectorDataset, night: Night, properties: Mapping[str, str]) -> VectorDataset:
    """The dataset with all columns that the rows have; a type is refused here if the comparison saw none."""
    first = next(iter(night.rows()), None)
    fields = [] if first is None else own_fields(first.schema)
    for one in fields:
        if one.name in dataset.schema.names and dataset.schema.field(one.name).type != one.type:
            raise OutputConflictError(
                f"the column {one.name!r} is {one.type}, and another job has filled it in {dataset.uri} as "
                f"{dataset.schema.field(one.name).type} meanwhile: rename it in the source, or write it as "
                "the store has it, and run the backfill again"
            )
    missing = [one for one in fields if one.name not in dataset.schema.names]
    return dataset.with_columns(missing, properties) if missing else dataset


def _commit(
    dataset: VectorDataset, night: Night, properties: Mapping[str, str], alive: Alive, *, others: bool
) -> Committed:
    import numpy as np

    matches = match(dataset, night, alive)
    renewing = _Renewing(dataset, night, matches)
    renewed = renewing.decide(alive)
    is_same = _is_same(dataset, night, matches, alive) if others else np.zeros(len(matches.ok), bool)
    counts = _counts(matches, is_same, renewing.late)
    replaced = matches.ok[~matches.is_late]
    removed = np.unique(
        np.concatenate([replaced[replaced != NOWHERE], renewed, matches.gone, matches.expired])
    )
    kept_gone = matches.gone if night.keep_gone_days else matches.gone[:0]
    if not len(removed) and counts.new == 0:
        return Committed(dataset, counts)
    fresh = _Fresh(dataset, night, matches, renewing, kept_gone)
    made = dataset.replace(
        removed, fresh.batches(), {**properties, COUNTS: json.dumps(asdict(counts))}, alive=alive
    )
    return Committed(made, counts)


def _counts(matches: Matches, is_same: np.ndarray, late_same: int) -> Counts:
    """Count a night.

    Args:
        matches: of all its items.
        is_same: see `_is_same`.
        late_same: items that are no longer the same, see `_Renewing.late`.
    """
    is_made = ~matches.is_late & ~is_same
    new = int((is_made & (matches.ok == NOWHERE)).sum())
    return Counts(
        new=new,
        changed=int(is_made.sum()) - new,
        copied=int((is_made & matches.is_copied).sum()),
        same=len(matches.same) - late_same + int(is_same.sum()),
        failed=matches.failed,
        late=int(matches.is_late.sum()) + late_same,
        gone=len(matches.gone),
        expired=len(matches.expired),
    )


def _is_same(dataset: VectorDataset, night: Night, matches: Matches, alive: Alive) -> np.ndarray:
    """Whether the dataset has the image of each ok row already; not for rows that are late."""
    import numpy as np

    found: np.ndarray = (matches.ok != NOWHERE) & ~matches.is_late
    for first, rows in _slices(night, ItemStatus.OK):
        here = slice(first, first + rows.num_rows)
        is_there = found[here].copy()
        there = dataset.take(matches.ok[here][is_there], ["content_hash"])["content_hash"].combine_chunks()
        found[np.flatnonzero(is_there) + first] = _equal(
            there, rows["content_hash"].filter(pa.array(is_there))
        )
        alive()
    return found


def _slices(night: Night, status: ItemStatus) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows with a status, some at a time, each time with the number of those before."""
    first = 0
    for batch in night.rows():
        rows = of_status(batch, status)
        for start in range(0, rows.num_rows, _ROWS_AT_A_TIME):
            some = rows.slice(start, _ROWS_AT_A_TIME)
            yield first, some
            first += some.num_rows


class _Renewing:
    """Rows of the dataset whose items are the same, and whose metadata are not."""

    def __init__(self, dataset: VectorDataset, night: Night, matches: Matches) -> None:
        import numpy as np

        self._dataset = dataset
        self._night = night
        self._matches = matches
        self._own = [name for name in dataset.schema.names if name not in OWN_COLUMNS]
        self._is_renewed = np.zeros(len(matches.same), bool)
        self.late = 0  # items whose row is not what they were compared with

    def decide(self, alive: Alive) -> np.ndarray:
        """Addresses of the rows that are to be written anew."""
        for first, items in _slices(self._night, ItemStatus.SAME):
            here = slice(first, first + items.num_rows)
            self._is_renewed[here] = self._differs(items, self._matches.same[here])
            alive()
        addresses: np.ndarray = self._matches.same[self._is_renewed]
        return addresses

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows to be written anew."""
        for first, items in _slices(self._night, ItemStatus.SAME):
            here = slice(first, first + items.num_rows)
            chosen = self._is_renewed[here]
            if chosen.any():
                yield self._renewed(items.filter(pa.array(chosen)), self._matches.same[here][chosen])

    def _differs(self, items: pa.RecordBatch, addresses: np.ndarray) -> np.ndarray:
        import numpy as np

        is_there = addresses != NOWHERE
        columns = ["content_hash", "gone_at", *RENEWED, *self._own]
        there = self._dataset.take(addresses[is_there], columns)
        items = as_stored(items.filter(pa.array(is_there)), self._dataset.schema, self._night)
        is_equal = _equal(there["content_hash"].combine_chunks(), items["content_hash"])
        self.late += len(addresses) - int(is_equal.sum())
        # One with a version was only asked because it seemed to have changed, or was too young to be certain.
        differs = there["gone_at"].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
        differs |= items["version"].is_valid().to_numpy(zero_copy_only=False)
        for name in (*RENEWED, *self._own):
            differs |= ~_equal(there[name].combine_chunks(), items[name])
        found = np.zeros(len(addresses), bool)
        found[is_there] = is_equal & differs
        return found

    def _renewed(self, items: pa.RecordBatch, addresses: np.ndarray) -> pa.RecordBatch:
        schema = self._dataset.schema
        there = self._dataset.take(addresses, schema.names)
        items = as_stored(items, schema, self._night)
        taken = {*RENEWED, *self._own, "listed_at", "gone_at"}
        columns = [items[name] if name in taken else there[name].combine_chunks() for name in schema.names]
        return pa.RecordBatch.from_arrays(columns, schema=schema)


@dataclass(frozen=True)
class _Fresh:
    """The rows that a commit writes."""

    dataset: VectorDataset
    night: Night
    matches: Matches
    renewing: _Renewing
    kept_gone: np.ndarray  # addresses of rows that stay for some days

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield from self._ok()
        yield from self.renewing.batches()
        yield from self._gone()

    def _ok(self) -> Iterator[pa.RecordBatch]:
        first = 0
        for batch in self.night.rows():
            some = of_status(batch, ItemStatus.OK)
            is_kept = ~self.matches.is_late[first : first + some.num_rows]
            first += some.num_rows
            if is_kept.any():
                yield as_stored(some.filter(pa.array(is_kept)), self.dataset.schema, self.night)

    def _gone(self) -> Iterator[pa.RecordBatch]:
        schema = self.dataset.schema
        position = schema.get_field_index("gone_at")
        for start in range(0, len(self.kept_gone), _ROWS_AT_A_TIME):
            rows = self.dataset.take(self.kept_gone[start : start + _ROWS_AT_A_TIME], schema.names)
            gone_at = pa.repeat(pa.scalar(self.night.listed_at, TIME_TYPE), len(rows))
            rows = rows.set_column(position, schema.field(position), gone_at)
            yield from rows.cast(schema).combine_chunks().to_batches()


def _equal(some: pa.Array, others: pa.Array) -> np.ndarray:
    """Whether each value equals the other one; null equals null."""
    if pa.types.is_nested(some.type):
        import numpy as np

        pairs = zip(some.to_pylist(), others.to_pylist(), strict=True)
        return np.array([one == other for one, other in pairs], bool)
    both_null = pc.and_(some.is_null(), others.is_null())
    found: np.ndarray = pc.or_(pc.fill_null(pc.equal(some, others), False), both_null).to_numpy(
        zero_copy_only=False
    )
    return found
