"""Compares a whole source with what a dataset knows, before anything is submitted or changed.

Items that a job must run go to a file of their own. Memory: 60 bytes per item of either side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipfleet.contract.parts import INLINE_COLUMN, ITEM_COLUMNS, KNOWN_FIELDS, VERSION_COLUMN
from clipfleet.contract.stores import DIGEST, KNOWN_ETAG, KNOWN_HASH, KNOWN_LAST_MODIFIED, LISTED_VERSION
from clipfleet.errors import SourceError
from clipfleet.sources.batches import Source
from clipfleet.sources.file_states import MISSING, file_states
from clipfleet.store.dataset import Alive, VectorDataset
from clipfleet.store.drawing import Drawing
from clipfleet.store.known import KnownItems
from clipfleet.store.rows import TIME_TYPE, digests, id_hashes, store_column_name, stored_type
from clipfleet.store.signed_urls import lead_to_the_same

if TYPE_CHECKING:
    import numpy as np

# Columns of a list that say when an item has changed, in any case.
VALIDATORS = (
    "etag", "version", "version_id", "md5", "sha1", "sha256", "content_hash", "checksum", "last_modified",
    "mtime", "modified", "modified_at", "updated_at",
)  # fmt: skip
_OF_THE_STORE = {KNOWN_ETAG: "etag", KNOWN_LAST_MODIFIED: "last_modified", KNOWN_HASH: "content_hash"}
_GONE_AT_A_TIME = 8192
# A file may change again within one tick of its file system's clock, without a trace in size or time.
_TICK = timedelta(seconds=2)
_NANOSECONDS = r"^\d+ (?P<ns>\d{1,18}|[1-8]\d{18})$"  # of the version of a local file: size and mtime


@dataclass(frozen=True)
class Comparison:
    """What a source asks of a store."""

    items: int  # of the source
    to_run: int  # new, changed, or to be asked; in the file
    left: int  # likewise, but above the limit of one night
    new: int  # of both: those that the store does not know
    same: int  # for certain
    gone: np.ndarray = field(repr=False)  # addresses of the rows whose items are gone, uint64, sorted


class Comparing:
    """One comparison, batch by batch."""

    def __init__(
        self,
        dataset: VectorDataset | None,
        known: KnownItems,
        *,
        began_at: datetime,
        most_items: int | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            dataset: at the version that `known` is of; None: there is none yet.
            known: see `known_items`.
            began_at: before the source is read, by a clock that is not ahead of those of its file systems.
            most_items: to run; others are left for another night.
        """
        import numpy as np

        self._dataset = dataset
        self._known = known
        self._began_at = began_at
        self._drawing = None if most_items is None else Drawing(most_items, began_at)
        self._is_seen = np.zeros(len(known), bool)
        self._new: list[np.ndarray] = []  # hashes of ids that the store does not know
        self._items = self._wanted = self._to_run = self._same = 0

    def run(self, source: Source, path: Path, alive: Alive = lambda: None) -> Comparison:
        """Read the whole source; write the items that a job must run, in their order, to a Parquet file.

        Columns of the file: as the source has them, without its version, then `KNOWN_FIELDS`; `item_index`
        counts the items of the file. Without any item there is no file.

        Args:
            source: read once, to its end.
            path: of the file.
            alive: called after each batch.

        Raises:
            SourceError: the source cannot be read to its end, an id occurs twice, or a column has another
                type than in the store.
        """
        import numpy as np

        with _spool(path) as write:
            for batch in source.batches():
                if batch.num_rows:
                    chosen = self._compare(batch)
                    if chosen.num_rows:
                        write(chosen)
                alive()
        new = sum(map(len, self._new))
        self._require_new_ones_once(path)
        if self._drawing is not None and self._to_run > self._drawing.most:
            self._draw(self._drawing, path)
        left = self._wanted - self._to_run
        gone = self._known.addresses[~self._is_seen & ~self._known.is_gone]
        return Comparison(self._items, self._to_run, left, new, self._same, np.sort(gone))

    def _compare(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of a batch that a job must run, or of which some will be drawn."""
        import numpy as np

        self._require_types(batch.schema)
        versions, batch = _with_versions(batch)
        known, hashes = self._known, id_hashes(batch["item_id"])
        found = digests(batch.append_column(LISTED_VERSION, versions), _digested(batch))
        places = known.places(hashes)
        is_known = places >= 0
        self._note(batch, hashes, places)
        at = places[is_known]
        is_same = np.zeros(batch.num_rows, bool)
        is_same[is_known] = (known.digests[at] == found[is_known]) & known.is_certain[at] & ~known.is_gone[at]
        wanted = np.flatnonzero(~is_same)
        self._items += batch.num_rows
        self._same += int(is_same.sum())
        self._wanted += len(wanted)
        if self._drawing is not None:
            is_asked = self._is_asked(places[wanted], found[wanted])
            wanted = wanted[self._drawing.offer(hashes[wanted], is_asked)]
        first, self._to_run = self._to_run, self._to_run + len(wanted)
        taken = batch.take(pa.array(wanted))
        taken = taken.set_column(0, "item_index", pa.arange(first, self._to_run))
        versions, found = versions.take(pa.array(wanted)), found[wanted]
        # A digest that no later listing gives: the item is asked again.
        found = np.where(self._is_young(versions), ~found, found)
        return _joined(taken, versions, found, self._facts(places[wanted], taken["uri"], versions))

    def _is_asked(self, places: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Which items seem not to have changed: they are only asked, as that is not certain."""
        import numpy as np

        is_asked = places >= 0
        at, digest = places[is_asked], found[is_asked]
        had = self._known.digests[at]
        is_asked[is_asked] = np.isin(had ^ digest, (0, -1)) & ~self._known.is_gone[at]
        return is_asked

    def _draw(self, drawing: Drawing, path: Path) -> None:
        """Leave the items in the file that this night runs."""
        every = path.with_suffix(".all")
        path.rename(every)
        drawing.close()
        self._to_run = 0
        with _spool(path) as write, pq.ParquetFile(every, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                for batch in file.read_row_group(group, use_threads=False).to_batches():
                    drawn = self._drawn(drawing, batch)
                    if drawn.num_rows:
                        write(drawn)
        every.unlink()

    def _drawn(self, drawing: Drawing, batch: pa.RecordBatch) -> pa.RecordBatch:
        hashes = id_hashes(batch["item_id"])
        is_asked = self._is_asked(self._known.places(hashes), batch[DIGEST].to_numpy())
        drawn = batch.filter(pa.array(drawing.is_drawn(hashes, is_asked)))
        first, self._to_run = self._to_run, self._to_run + drawn.num_rows
        return drawn.set_column(0, "item_index", pa.arange(first, self._to_run))

    def _is_young(self, versions: pa.Array) -> np.ndarray:
        """Which files were changed so lately that their versions may stand for two contents."""
        changed = pc.struct_field(pc.extract_regex(versions, _NANOSECONDS), "ns").cast(pa.int64())
        latest = pa.scalar(self._began_at - _TICK, TIME_TYPE).cast(pa.int64())
        is_young = pc.greater_equal(pc.divide(changed, 1000), latest)
        found: np.ndarray = pc.fill_null(is_young, False).to_numpy(zero_copy_only=False)
        return found

    def _facts(self, places: np.ndarray, uris: pa.Array, versions: pa.Array) -> dict[str, pa.Array]:
        """What the store knows of items, by the names of `KNOWN_FIELDS`; null where it does not.

        Validators mean something only where they came from, and of the version that they came with: a site
        may repeat an ETag. The hash is that of bytes, wherever they are.
        """
        import numpy as np

        is_known = places >= 0
        if self._dataset is None or not is_known.any():
            return {name: pa.nulls(len(places), pa.string()) for name in _OF_THE_STORE}
        rows = self._dataset.take(
            self._known.addresses[places[is_known]], ["uri", "version", *_OF_THE_STORE.values()]
        )
        pairs = zip(rows["uri"].to_pylist(), uris.filter(pa.array(is_known)).to_pylist(), strict=True)
        is_there = pa.array([lead_to_the_same(was, now) for was, now in pairs], pa.bool_())
        is_other = pc.not_equal(rows["version"].combine_chunks(), versions.filter(pa.array(is_known)))
        is_there = pc.and_not(is_there, pc.fill_null(is_other, False))
        at = np.full(len(places), -1)
        at[is_known] = np.arange(int(is_known.sum()))
        indexes = pa.array(at, mask=~is_known)
        found = {name: rows[column].combine_chunks() for name, column in _OF_THE_STORE.items()}
        for name in (KNOWN_ETAG, KNOWN_LAST_MODIFIED):
            found[name] = pc.if_else(is_there, found[name], None)
        return {name: values.take(indexes) for name, values in found.items()}

    def _note(self, batch: pa.RecordBatch, hashes: np.ndarray, places: np.ndarray) -> None:
        """Note which rows of the store are in the source; raise for an id that was there already."""
        import numpy as np

        is_known = places >= 0
        self._new.append(hashes[~is_known])
        at = places[is_known]
        again = self._is_seen[at]
        counts = np.zeros(0, int)
        if len(at):
            _, inverse, counts = np.unique(at, return_inverse=True, return_counts=True)
            again = again | (counts[inverse] > 1)
        self._is_seen[at] = True
        if again.any():
            position = int(np.flatnonzero(is_known)[np.flatnonzero(again)[-1]])
            self._require_another(batch, position, int(places[position]))

    def _require_another(self, batch: pa.RecordBatch, position: int, place: int) -> None:
        """Raise if this item has the id of the row in the store, which was seen before."""
        assert self._dataset is not None  # noqa: S101 - it has rows
        row = self._dataset.take(self._known.addresses[[place]], ["item_id", "uri"])
        item_id = batch["item_id"][position].as_py()
        if row["item_id"][0].as_py() == item_id:
            raise _twice(item_id, row["uri"][0].as_py(), batch["uri"][position].as_py())

    def _require_new_ones_once(self, path: Path) -> None:
        """Raise for an id that occurs twice among those that the store does not know."""
        import numpy as np

        hashes = np.concatenate(self._new) if self._new else np.empty(0, np.uint64)
        self._new.clear()
        hashes.sort()
        twice = hashes[1:][hashes[1:] == hashes[:-1]]
        if not len(twice) or not path.exists():
            return
        seen: dict[str, str] = {}
        for batch in pq.ParquetFile(path).iter_batches(columns=["item_id", "uri"]):
            is_hit = np.isin(id_hashes(batch["item_id"]), twice)
            for row in batch.filter(pa.array(is_hit)).to_pylist():
                if row["item_id"] in seen:
                    raise _twice(row["item_id"], seen[row["item_id"]], row["uri"])
                seen[row["item_id"]] = row["uri"]

    def _require_types(self, schema: pa.Schema) -> None:
        """Raise for a column of the source that the store has with another type."""
        if self._dataset is None:
            return
        there = self._dataset.schema
        for item in _own(schema):
            name = store_column_name(item.name)
            if name not in there.names or there.field(name).type.equals(stored_type(item.type)):
                continue
            raise SourceError(
                f"the column {item.name!r} of the source is {item.type}, in the store {name!r} is "
                f"{there.field(name).type}: rename it in the source, or write it as the store has it"
            )

    def gone_items(self, comparison: Comparison) -> Iterator[pa.RecordBatch]:
        """`item_id` and `digest` of the rows whose items are gone."""
        for start in range(0, len(comparison.gone), _GONE_AT_A_TIME):
            assert self._dataset is not None  # noqa: S101 - it has rows
            some = comparison.gone[start : start + _GONE_AT_A_TIME]
            yield from self._dataset.take(some, ["item_id", "digest"]).to_batches()


def _own(schema: pa.Schema) -> list[pa.Field[Any]]:
    """The source's own columns."""
    return [one for one in schema if one.name not in (*ITEM_COLUMNS, INLINE_COLUMN, VERSION_COLUMN)]


def _digested(batch: pa.RecordBatch) -> Sequence[str]:
    """The columns that a digest covers; of inline images the version has the hash."""
    return ["item_id", "uri", LISTED_VERSION, *(one.name for one in _own(batch.schema))]


def _with_versions(batch: pa.RecordBatch) -> tuple[pa.Array, pa.RecordBatch]:
    """The version of each item, as far as the source lists one; and the batch without that column."""
    found: list[pa.Array] = []
    if VERSION_COLUMN in batch.schema.names:
        found.append(batch[VERSION_COLUMN])
        batch = batch.drop_columns([VERSION_COLUMN])
    if INLINE_COLUMN in batch.schema.names:
        images = batch[INLINE_COLUMN].to_pylist()
        found.append(pa.array([None if one is None else _hash(one) for one in images], pa.string()))
    states = file_states(batch["uri"])
    if states is not None:
        found.append(pc.if_else(pc.not_equal(states, MISSING), states, None))
    named = [one.name for one in _own(batch.schema) if one.name.lower() in VALIDATORS]
    texts = (pc.cast(batch[name], pa.string()) for name in named)
    found += [pc.if_else(pc.not_equal(text, ""), text, None) for text in texts]
    if not found:
        return pa.nulls(batch.num_rows, pa.string()), batch
    # The first that is there: a file's own state says more than a column that somebody has written.
    return pc.coalesce(*found), batch


def _hash(image: bytes) -> str:
    return blake2b(image, digest_size=16).hexdigest()


def _joined(
    items: pa.RecordBatch, versions: pa.Array, digest: np.ndarray, facts: dict[str, pa.Array]
) -> pa.RecordBatch:
    columns = {LISTED_VERSION: versions, DIGEST: pa.array(digest), **facts}
    for known in KNOWN_FIELDS:
        items = items.append_column(known, columns[known.name])
    return items


@contextmanager
def _spool(path: Path) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Write batches to a file, which is created with the first one."""
    writer: pq.ParquetWriter | None = None

    def write(batch: pa.RecordBatch) -> None:
        nonlocal writer
        if writer is None:
            writer = pq.ParquetWriter(path, batch.schema, compression="zstd", use_dictionary=False)
        writer.write_batch(batch)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def _twice(item_id: str, one: str, other: str) -> SourceError:
    return SourceError(
        f"the id {item_id!r} occurs twice in the source: for {one} and for {other}; a store has one row "
        "for each id: give each item its own, or leave out the column of ids to use the URIs"
    )
