"""The job of a batch: submitted from its input file, and read back row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipfleet.client import Client, JobOptions
from clipfleet.contract.jobs import Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.parts import ItemStatus
from clipfleet.errors import JobNotFoundError, ResultsNotReadyError, SourceError
from clipfleet.ledger.jobs import JobStatus, Ledger
from clipfleet.outputs import open_output
from clipfleet.results.part_rows import PartRows
from clipfleet_gateway.batches.lines import Reading, lines_of, request_of
from clipfleet_gateway.batches.record import BatchRecord, Checked
from clipfleet_gateway.files.store import FileStore
from clipfleet_gateway.inputs.asked import Item
from clipfleet_gateway.inputs.images import own_file_id
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.policies.logs import DecisionLogs
from clipfleet_gateway.policies.shelf import PolicyShelf
from clipfleet_gateway.policies.stored import StoredPolicy

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_ID, _TEXT, _LABEL_SET = "custom_id", "text", "label_set"
_COLUMNS = ("item_index", "status", "error_code", "error_detail")


@dataclass(frozen=True, slots=True)
class Row:
    """The row of one input of a batch."""

    item_index: int
    error: tuple[str, str] | None = None  # code and detail; None: it is ok
    vector: np.ndarray | None = None  # (d,), of a job that embeds
    labels: Sequence[str] = ()  # of a job that labels, the best first
    scores: Sequence[float] = ()
    decided: Mapping[str, Any] | None = None  # all columns but vectors, of a moderation job


class BatchJobs:
    """The jobs of batches. Raises `WorldError` while Redis or a place is unavailable."""

    def __init__(
        self, client: Client, ledger: Ledger, files: FileStore, policies: PolicyShelf, logs: DecisionLogs
    ) -> None:
        self._client = client
        self._policies = policies
        self._logs = logs
        self._ledger = ledger  # that of the client, for what needs no description of a job
        self._files = files

    def submit(
        self,
        batch: BatchRecord,
        checked: Checked,
        key: Key,
        label_sets: Sequence[LabelSet],
        output: str,
        alive: Callable[[], object],
    ) -> None:
        """Submit the job, or resume its submit. Idempotent.

        Raises:
            UsageError: what was validated is not there any more; see also `Client.classify`.
        """
        if self._is_sealed(batch.id, output):
            return
        options = JobOptions(job_id=batch.id, lane=key.lane, output=output, id_column=_ID)
        names = {one.hash: one.name for one in label_sets}
        policy = self.policy(checked)
        items = self._items(batch, checked, key, names, policy, alive)
        if policy is not None:
            place = self._logs.place_of(batch.owner)
            self._client.moderate(items, self._policies.file_of(policy), decisions=place, options=options)
            return
        options = options.model_copy(update={"model": checked.model})
        if checked.task is Task.EMBED_TEXT:
            self._client.embed_text(items, text_column=_TEXT, options=options)
        elif checked.task is Task.EMBED:
            self._client.embed(items, options=options)
        else:
            self._client.classify(
                items, label_sets, label_set_column=_LABEL_SET, top_k=checked.top_k, options=options
            )

    def policy(self, checked: Checked) -> StoredPolicy | None:
        """The policy that decides on all lines. Raises `OutputDamagedError` if it is gone."""
        named = checked.policy
        return None if named is None else self._policies.load(named.name, named.sha256)

    def _is_sealed(self, job_id: str, output: str) -> bool:
        """Whether the job has all of its items; what Redis has lost of it is restored first."""
        status = self.status(job_id)
        if status is not None and (status.sealed or status.state.is_final):
            return status.sealed
        with suppress(JobNotFoundError):
            return self._client.rebuild(output).status().sealed
        return False

    def _items(
        self,
        batch: BatchRecord,
        checked: Checked,
        key: Key,
        names: dict[str, str],
        policy: StoredPolicy | None,
        alive: Callable[[], object],
    ) -> Iterator[dict[str, Any]]:
        """The items of all lines, the same ones each time."""
        try:
            content = self._files.content(batch.owner, batch.input_file_id)
        except FileNotFoundError:
            raise SourceError(
                f"{batch.input_file_id} was deleted before all of its lines were read"
            ) from None

        def policy_of(model: str | None) -> StoredPolicy:
            """The one that was found when the lines were checked."""
            assert policy is not None, model  # noqa: S101 - lines of other endpoints name none
            return policy

        reading = Reading(batch.endpoint, key, checked.model, policy_of)
        with closing(content):
            for line in lines_of(content):
                request = request_of(line, reading)
                label_set = request.asked.label_set
                chosen = {_LABEL_SET: names[label_set.hash]} if label_set is not None else {}
                for item in request.asked.items:
                    alive()
                    yield {_ID: request.custom_id, **self._content(batch.owner, item), **chosen}

    def _content(self, owner: str, item: Item) -> dict[str, Any]:
        if isinstance(item, str):
            return {_TEXT: item}
        file_id = own_file_id(item)
        if file_id is None:
            return dict(item)
        data = self._files.read(owner, file_id)
        if data is None:
            raise SourceError(f"{file_id} was deleted before the batch had read it")
        return {"bytes": data}

    def status(self, job_id: str) -> JobStatus | None:
        """The status of a job; None if Redis does not know it."""
        with suppress(JobNotFoundError):
            return self._ledger.status(job_id)
        return None

    def cancel(self, job_id: str) -> None:
        """End a job early, if it has not ended. Idempotent."""
        with suppress(JobNotFoundError):
            self._client.job(job_id).cancel()

    def rows(self, checked: Checked, output: str) -> Iterator[Row]:
        """The rows that are there, in the order of the items. Needs no Redis."""
        columns = ("labels", "scores") if checked.task is Task.CLASSIFY else ("embedding",)
        chosen = [*_COLUMNS, *columns] if checked.policy is None else None  # all, which have no vectors
        try:
            stored = PartRows(open_output(output)).read(chosen)
        except ResultsNotReadyError:
            return
        for batch in stored.batches:
            yield from _rows(batch)


def _rows(batch: pa.RecordBatch) -> Iterator[Row]:
    if "decision" in batch.schema.names:
        yield from (Row(row["item_index"], decided=row) for row in batch.to_pylist())
        return
    errors = zip(batch["error_code"].to_pylist(), batch["error_detail"].to_pylist(), strict=True)
    found = zip(
        batch["item_index"].to_pylist(), batch["status"].to_pylist(), errors, _answers(batch), strict=True
    )
    for index, status, (code, detail), answer in found:
        if status == ItemStatus.OK:
            yield Row(index, **answer)
        else:
            yield Row(index, (code or "unknown", detail or ""))


def _answers(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """What each row holds if it is ok."""
    if "labels" in batch.schema.names:
        pairs = zip(batch["labels"].to_pylist(), batch["scores"].to_pylist(), strict=True)
        yield from ({"labels": labels or (), "scores": scores or ()} for labels, scores in pairs)
        return
    vectors = batch["embedding"]
    matrix = vectors.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, vectors.type.list_size)
    rows = iter(matrix)
    yield from ({"vector": next(rows)} if is_there else {} for is_there in vectors.is_valid().to_pylist())
