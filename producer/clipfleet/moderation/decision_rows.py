"""The records of a log as rows, so that thresholds can be chosen and certified on real traffic.

The records may be of many small jobs. The rows are those of one policy, the newest one of the period: their
scores are comparable.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from itertools import chain
from typing import Any

import pyarrow as pa

from clipfleet.contract.columns import DECISION_COLUMNS, LABEL_COLUMNS, accepted_column, label_columns
from clipfleet.contract.jobs import Job, SourceDescription, Task
from clipfleet.contract.label_sets import LabelSet, short_hash
from clipfleet.contract.parts import DECISION_TYPES, ItemStatus, part_schema
from clipfleet.contract.policies import Policy
from clipfleet.contract.versions import SCHEMA_VERSION
from clipfleet.errors import OutputDamagedError, ResultsNotReadyError, UsageError
from clipfleet.ledger.status import EarlyEnd
from clipfleet.moderation.log import POLICIES, RECORDS, all_records, days, read_policy
from clipfleet.outputs import Output, objects, open_output
from clipfleet.results.places import open_rows
from clipfleet.results.rows import RowReader, RowStream

KIND = "decisions"  # of the source
_TIME = r"\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?Z)?"


def open_place(uri: str, as_of: str | None = None) -> RowReader:
    """Open the rows of an output or a store, see `open_rows`; or the records of a place of decisions.

    `PLACE@2026-12-03` names the decisions until the end of a day (UTC), `PLACE@2026-12-03T09:30Z` those until
    a time: rows that do not change any more once it is over.

    Raises:
        UsageError: see `open_rows`.
    """
    name, _, time = uri.rpartition("@")
    if name and re.fullmatch(_TIME, time):
        dated = open_output(name)
        if _holds_decisions(dated):
            return DecisionRows(dated, until=_end_of(time))
    output = open_output(uri)
    if not _holds_decisions(output):
        return open_rows(uri, as_of)
    if as_of is not None:
        raise UsageError(f"{output.uri} holds decisions: write {uri}@{as_of} for those until then")
    return DecisionRows(output)


def _end_of(text: str) -> datetime:
    """The time that a text of `_TIME` names, or the end of a day."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text}: no such time: {error}") from None
    return found if "T" in text else (found + timedelta(days=1)).replace(tzinfo=UTC)


def _at(record: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(record["at"])


def _holds_decisions(output: Output) -> bool:
    """Whether an output is a place of decisions, and not that of a job."""
    return output.version(objects.JOB_FILE) is None and any(output.folders(RECORDS))


def item_index_of(decision_id: str) -> int:
    """A number for a decision that stays the same however many records are added: 63 bits of a hash."""
    return int.from_bytes(hashlib.sha256(decision_id.encode()).digest()[:8]) >> 1


class DecisionRows:
    """See `clipfleet.results.rows.RowReader`; in the order of days and jobs, with the columns of decisions.

    `item_index` is `item_index_of` the decision. Without heads, which have no thresholds to certify.
    """

    def __init__(self, output: Output, *, until: datetime | None = None) -> None:
        """`until`: the time of the last decisions; None: there is none."""
        self._output = output
        self._until = until
        self.uri = output.uri

    @cached_property
    def policy(self) -> Policy:
        """The policy of the newest record.

        Raises:
            ResultsNotReadyError: there are no records.
            OutputDamagedError: the policy is gone or was changed.
        """
        for day in reversed(days(self._output, until=self._last_day)):
            one_day = datetime.strptime(day, "%Y%m%d").date()
            records = all_records(self._output, one_day, one_day)
            newest = max(filter(self._is_meant, chain.from_iterable(records)), key=_at, default=None)
            if newest is not None:
                return self._policy_of(newest)
        raise ResultsNotReadyError(f"{self.uri} has no records of decisions")

    def _policy_of(self, record: Mapping[str, Any]) -> Policy:
        sha256 = record["policy"]["sha256"]
        found = read_policy(self._output, sha256)
        if found is None:
            where = f"{self.uri}/{POLICIES}/{sha256}.json"
            raise OutputDamagedError(f"{where} is not there, which its records name")
        return found

    def _is_meant(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is of the period: a job may decide days after it was created."""
        return self._until is None or _at(record) <= self._until

    @property
    def _last_day(self) -> date | None:
        return None if self._until is None else self._until.date()  # no decision is older than its job

    def job(self) -> Job:
        """A job that would have such rows; its id is that of all reads of this policy here."""
        policy = self.policy
        return Job(
            schema_version=SCHEMA_VERSION, task=Task.CLASSIFY,
            job_id=f"{KIND}-{short_hash([self.uri, policy.sha256])}",
            model=policy.model, label_sets=policy.label_sets, top_k=policy.most_labels, output=self.uri,
            source=SourceDescription(kind=KIND, uri=self.uri), created_at=datetime(2026, 1, 1, tzinfo=UTC),
        )  # fmt: skip

    def label_sets(self) -> Sequence[Mapping[str, Any]] | None:
        return [one.model_dump(mode="json") for one in self.policy.label_sets]

    def finished_at(self) -> datetime | None:
        """The time until which they are, if that is over; None: there may be more."""
        return self._until if self._until is not None and self._until < datetime.now(UTC) else None

    def early_end(self) -> EarlyEnd | None:
        """None: nothing has ended."""

    def read(self, columns: Sequence[str] | None = None) -> RowStream:
        schema = self._schema()
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        return RowStream(schema, self._batches(schema))

    def row_at(self, index: int) -> pa.RecordBatch | None:
        """Read all records up to this one."""
        for batch in self.read().batches:
            places = [place for place, one in enumerate(batch["item_index"].to_pylist()) if one == index]
            if places:
                return batch.slice(places[0], 1)
        return None

    def failure_examples(self) -> dict[str, str]:
        """None: the records have them."""
        return {}

    def _schema(self) -> pa.Schema:
        job = self.job()
        decisions = [*map(pa.field, DECISION_COLUMNS, DECISION_TYPES)]
        names = [one.name for one in job.named_label_sets]
        return part_schema(None, decisions, names, accepted_columns=job.accepted_columns)

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        policy = self.policy
        for records in all_records(self._output, until=self._last_day):
            rows = [
                _row(one, policy.label_sets)
                for one in records
                if one["policy"]["sha256"] == policy.sha256 and self._is_meant(one)
            ]
            if rows:
                kept = [{name: row.get(name) for name in schema.names} for row in rows]
                yield pa.RecordBatch.from_pylist(kept, schema)


def _row(record: Mapping[str, Any], label_sets: Sequence[LabelSet]) -> dict[str, Any]:
    error = record["error"] or {}
    status, decision_id, at, reasons = DECISION_COLUMNS
    row: dict[str, Any] = {
        "item_index": item_index_of(record["decision_id"]),
        "item_id": record["item_id"],
        "uri": record["uri"],
        "status": (ItemStatus.FAILED if error else ItemStatus.OK).value,
        "error_code": error.get("code"),
        "error_detail": error.get("detail"),
        "content_hash": record["content_hash"],
        "model_fingerprint": record["model_fingerprint"],
        status: record["status"],
        decision_id: record["decision_id"],
        at: record["at"],
        reasons: record["reasons"],
    }
    if error:
        return row
    for number, one in enumerate(label_sets):
        scores: dict[str, float] = record["scores"].get(one.name, {})
        accepted = [label for label, score in scores.items() if score >= one.threshold(label)]
        best = accepted[0] if accepted else None
        score = scores[best] if best is not None else next(iter(scores.values()), None)
        values = (best, score, [*scores], [*scores.values()])
        if number == 0:
            row |= {**dict(zip(LABEL_COLUMNS, values, strict=True)), "accepted": accepted}
        if len(label_sets) > 1:
            names = label_columns(one.name)
            row |= {**dict(zip(names, values, strict=True)), accepted_column(one.name): accepted}
    return row
