"""Chooses, sorts and cuts rows for people who look at them. Changes none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.columns import ACCEPTED_COLUMN, DECISION_COLUMNS, label_columns
from clipfleet.contract.jobs import Job
from clipfleet.contract.parts import ACCEPTED_TYPE, ItemStatus
from clipfleet.contract.policies import DecisionStatus
from clipfleet.errors import UsageError
from clipfleet.results.rows import RowReader, RowStream

_DECISION = DECISION_COLUMNS[0]


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows and columns of a job that are wanted."""

    failed: bool = False  # failed rows only
    label: str | None = None  # rows with this label, or that accept it, of any label set or head
    decision: DecisionStatus | None = None  # rows of a moderation job with this decision
    sort: str | None = None  # by this column; rows without a value come last
    descending: bool = False
    columns: tuple[str, ...] = ()  # in this order; none: all

    def read(self, reader: RowReader, limit: int | None) -> RowStream:
        """Read the selected rows, in source order unless sorted. Raises like `RowReader.read`.

        Args:
            reader: of the job.
            limit: upper bound of rows; None: all. Sorting holds so many rows in memory.

        Raises:
            UsageError: a column is unknown, or has no order.
        """
        stored = reader.read()
        wanted = self.columns or tuple(stored.schema.names)
        for name in (*wanted, *([] if self.sort is None else [self.sort])):
            if name not in stored.schema.names:
                known = ", ".join(stored.schema.names)
                raise UsageError(f"the rows have no column {name!r}; their columns are {known}")
        if self.decision is not None and _DECISION not in stored.schema.names:
            raise UsageError(f"{reader.uri}: its rows have no decisions, which `clipfleet moderate` makes")
        labels = _label_names(reader.job(), stored.schema) if self.label is not None else []
        batches: Iterator[pa.RecordBatch] = (self._chosen(batch, labels) for batch in stored.batches)
        if self.sort is not None:
            if pa.types.is_nested(stored.schema.field(self.sort).type):
                raise UsageError(f"column {self.sort!r} holds lists, which have no order")
            batches = self._sorted(batches, stored.schema, limit)
        return RowStream(
            pa.schema([stored.schema.field(name) for name in wanted]),
            (batch.select(list(wanted)) for batch in batches if batch.num_rows),
        )

    def _chosen(self, batch: pa.RecordBatch, labels: Sequence[str]) -> pa.RecordBatch:
        if self.failed:
            batch = batch.filter(pc.equal(batch["status"], pa.scalar(ItemStatus.FAILED.value)))
        if self.decision is not None:
            batch = batch.filter(pc.equal(batch[_DECISION], pa.scalar(self.decision.value)))
        if self.label is not None:
            is_labelled = pa.array([False] * batch.num_rows, pa.bool_())
            for name in labels:
                is_labelled = pc.or_(is_labelled, _has(batch[name], self.label))
            batch = batch.filter(is_labelled)
        return batch

    def _sorted(
        self, batches: Iterator[pa.RecordBatch], schema: pa.Schema, limit: int | None
    ) -> Iterator[pa.RecordBatch]:
        """All rows in order, or as many as are wanted: of each batch only those that may be among them."""
        best = schema.empty_table()
        order = "descending" if self.descending else "ascending"
        for batch in batches:
            if batch.num_rows:
                best = pa.concat_tables([best, pa.Table.from_batches([batch])])
            if limit is not None and best.num_rows > 2 * limit:
                best = self._first(best, order, limit)
        yield from self._first(best, order, limit).to_batches()

    def _first(self, rows: pa.Table, order: str, limit: int | None) -> pa.Table:
        keys = [(self.sort, order), ("item_index", "ascending")]
        indices = pc.sort_indices(rows, sort_keys=keys)
        return rows.take(indices if limit is None else indices.slice(0, limit)).combine_chunks()


EVERYTHING = Selection()


def _label_names(job: Job | None, schema: pa.Schema) -> list[str]:
    """The columns with the best label, or with the accepted ones: of all label sets and heads of the job."""
    sets = job.named_label_sets if job is not None else ()
    names = ["label", *(label_columns(label_set.name)[0] for label_set in sets)]
    if job is not None:
        names += job.accepted_columns
        names += [name for head in job.heads for name in (head.columns[0], *head.columns[2:])]
    elif ACCEPTED_COLUMN in schema.names and schema.field(ACCEPTED_COLUMN).type.equals(ACCEPTED_TYPE):
        names.append(ACCEPTED_COLUMN)
    return [name for name in names if name in schema.names]


def _has(column: pa.Array, label: str) -> pa.Array:
    """Whether each row has the label, or a list with it."""
    if not pa.types.is_list(column.type):
        return pc.fill_null(pc.equal(column, pa.scalar(label)), False)
    matches = pc.equal(pc.list_flatten(column), pa.scalar(label))
    rows = pc.list_parent_indices(column).filter(matches)
    return pc.is_in(pa.array(range(len(column)), rows.type), rows)
