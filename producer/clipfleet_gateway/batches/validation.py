"""All or nothing: every line of an input file is checked before any of them is run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import cache
from hashlib import blake2b
from typing import BinaryIO

import pyarrow as pa
from pydantic import BaseModel, TypeAdapter

from clipfleet.contract.jobs import Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.model_names import normalise_model
from clipfleet_gateway.batches.lines import LineError, Reading, Request, lines_of, request_of
from clipfleet_gateway.batches.record import BatchRecord, Checked, PolicyName
from clipfleet_gateway.batches.store import BatchStore
from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.files.store import FileStore
from clipfleet_gateway.inputs.asked import Asked
from clipfleet_gateway.inputs.images import own_file_id
from clipfleet_gateway.inputs.own_files import MOST_BATCH_BYTES, OwnFiles
from clipfleet_gateway.inputs.zero_shot import MODEL_MISSING
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.policies.shelf import PolicyShelf
from clipfleet_gateway.shapes.batches import BatchError, Endpoint
from clipfleet_gateway.shapes.embeddings import EncodingFormat

MOST_ERRORS = 100  # that a batch lists
MOST_LABEL_SETS = 1000  # that differ: each is encoded by every worker of the job
_NOTHING = Asked(Task.EMBED, "", None, (), ())
# After these all later lines are wrong, too.
_LAST = ("line_too_long", "too_many_requests", "too_many_inputs", "too_many_label_sets", "too_many_bytes")
LABEL_SETS: TypeAdapter[tuple[LabelSet, ...]] = TypeAdapter(tuple[LabelSet, ...])


class NoModelYetError(Exception):
    """A line names no model: which one it means shows once a worker is up."""


class KeptRequest(BaseModel):
    """What the end of a batch must know of a request; its rows are the next ones of the job."""

    custom_id: str
    params: tuple[str, ...]  # of its inputs, such as `input[3]`
    encoding_format: EncodingFormat = EncodingFormat.FLOAT
    dimensions: int | None = None


class Validation:
    """Checks the lines of one batch, in order."""

    def __init__(
        self,
        batch: BatchRecord,
        key: Key,
        files: FileStore,
        most: int,
        served: frozenset[str],
        policies: PolicyShelf,
    ) -> None:
        self._batch = batch
        self._files = files
        self._most = most  # lines, and inputs
        self._served = served  # models; the only one is that of lines that name none
        only = next(iter(served)) if len(served) == 1 else None
        # A name means one policy in all lines, even if another one is made current meanwhile.
        self._reading = Reading(batch.endpoint, key, only, cache(policies.require))
        self._ids: set[bytes] = set()
        self._own_files = OwnFiles(files, key.name, MOST_BATCH_BYTES)
        self._label_sets: dict[str, LabelSet] = {}
        self._first: Asked = _NOTHING  # of the first line
        self._inputs = self._top_k = 0

    def run(self, store: BatchStore, alive: Callable[[], object]) -> Checked | tuple[BatchError, ...]:
        """Check all lines, and keep what is needed of them later; return what is wrong, if anything is.

        Raises:
            NoModelYetError: a line names no model, and no worker serves one.
        """
        batch = self._batch
        try:
            content = self._files.content(batch.owner, batch.input_file_id)
        except FileNotFoundError:
            return (input_file_gone(batch),)
        with closing(content), store.place.scratch() as path:
            with path.open("wb") as kept:
                errors = self._errors(content, kept, alive)
            if errors:
                return errors
            store.place.publish(path, store.requests_file(batch.id), replace=True)
        label_sets = LABEL_SETS.dump_json((*self._label_sets.values(),))
        store.place.replace(store.label_sets_file(batch.id), label_sets)
        return Checked(
            task=self._first.task, model=self._first.model, requests=len(self._ids), inputs=self._inputs,
            top_k=max(1, self._top_k), policy=self._policy,
        )  # fmt: skip

    @property
    def _policy(self) -> PolicyName | None:
        stored = self._first.policy
        return None if stored is None else PolicyName(name=stored.name, sha256=stored.sha256)

    def _errors(
        self, content: pa.NativeFile, kept: BinaryIO, alive: Callable[[], object]
    ) -> tuple[BatchError, ...]:
        errors = []
        for number, line in enumerate(lines_of(content), 1):
            alive()
            try:
                self._check(number, line, kept, alive)
            except LineError as error:
                errors.append(error.at(number))
                if len(errors) == MOST_ERRORS or error.code in _LAST:
                    break
        if not (errors or self._ids):
            errors.append(LineError("empty_file", "The file has no lines").at(None))
        return tuple(errors)

    def _check(self, line: int, data: bytes, kept: BinaryIO, alive: Callable[[], object]) -> None:
        if line > self._most:
            raise LineError("too_many_requests", f"A batch has at most {self._most:,} lines: make several")
        request = self._request(data)
        hashed = blake2b(request.custom_id.encode(), digest_size=16).digest()
        if hashed in self._ids:
            raise LineError(
                "duplicate_custom_id", f"custom_id {request.custom_id!r} appears twice", "custom_id"
            )
        self._ids.add(hashed)
        self._require_like_the_first(request.asked)
        self._require_own_files(request, alive)
        self._inputs += len(request.asked.items)
        if self._inputs > self._most:
            raise LineError(
                "too_many_inputs", f"A batch has at most {self._most:,} inputs: make several", "input"
            )
        if request.asked.label_set is not None:
            self._add(request.asked.label_set)
        known = KeptRequest(
            custom_id=request.custom_id, params=request.asked.params,
            encoding_format=request.encoding_format, dimensions=request.dimensions,
        )  # fmt: skip
        kept.write(known.model_dump_json().encode() + b"\n")

    def _request(self, data: bytes) -> Request:
        try:
            return request_of(data, self._reading)
        except LineError as error:
            is_of_a_model = self._batch.endpoint is not Endpoint.MODERATIONS
            if error.code == MODEL_MISSING and is_of_a_model and not self._served:
                raise NoModelYetError from None
            raise

    def _require_like_the_first(self, asked: Asked) -> None:
        if self._first is _NOTHING:
            try:
                normalise_model(asked.model)
            except ValueError as error:
                raise LineError("invalid_model", str(error), "model") from None
            self._first = asked
        elif asked.policy != self._first.policy:
            first = self._first.policy.full_name if self._first.policy else ""
            one = f"A batch has one policy, and an earlier line has {first}"
            raise LineError("mismatched_model", one, "model")
        elif asked.model != self._first.model:
            one = f"A batch has one model, and an earlier line has {self._first.model}"
            raise LineError("mismatched_model", one, "model")
        elif asked.task != self._first.task:
            kind = "texts" if isinstance(self._first.items[0], str) else "images"
            one = f"A batch has either texts or images, and an earlier line has {kind}"
            raise LineError("mismatched_modality", one, "input")

    def _require_own_files(self, request: Request, alive: Callable[[], object]) -> None:
        for item, param in zip(request.asked.items, request.asked.params, strict=True):
            file_id = own_file_id(item)
            if file_id is None:
                continue
            alive()
            try:
                self._own_files.add(file_id, param)
            except ApiError as error:
                raise LineError(error.code or "invalid_request", error.message, error.param) from None

    def _add(self, label_set: LabelSet) -> None:
        if label_set.hash not in self._label_sets:
            if len(self._label_sets) >= MOST_LABEL_SETS:
                raise LineError(
                    "too_many_label_sets", f"A batch has at most {MOST_LABEL_SETS:,} label sets that differ",
                    "parameters.candidate_labels",
                )  # fmt: skip
            name = f"set_{len(self._label_sets)}"
            self._label_sets[label_set.hash] = label_set.model_copy(update={"name": name})
        self._top_k = max(self._top_k, len(label_set.labels))


def input_file_gone(batch: BatchRecord) -> BatchError:
    """The input file was deleted, or has expired, too early."""
    message = f"{batch.input_file_id} was deleted before all of its lines were read"
    return BatchError(code="input_file_gone", message=message, param="input_file_id")
