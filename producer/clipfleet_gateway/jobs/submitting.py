"""Submits the job of a request, or resumes its submit, through `Client` as any program would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from clipfleet.client import Client, JobOptions
from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.model_names import normalise_model
from clipfleet.errors import SourceError, UsageError, usage_errors
from clipfleet.labels.sets import LabelSetSpec, label_sets_of
from clipfleet.sources import ReadOptions, Source, source_of
from clipfleet_gateway.errors import ApiError, invalid
from clipfleet_gateway.files.record import is_file_id
from clipfleet_gateway.files.store import FileStore
from clipfleet_gateway.inputs.own_files import MOST_ITEMS_BYTES, OwnFiles
from clipfleet_gateway.jobs.record import JobRecord, PolicyName
from clipfleet_gateway.jobs.sources import DATA, CheckedSource, own_list, place_of_key, require_place
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.keys.sources import require_readable
from clipfleet_gateway.policies.logs import DecisionLogs
from clipfleet_gateway.policies.shelf import PolicyShelf
from clipfleet_gateway.shapes.jobs import ItemBody, JobBody, JobRequest, JobTask


@dataclass(frozen=True)
class Submitting:
    """Turns requests into jobs. Thread-safe."""

    client: Client
    files: FileStore
    policies: PolicyShelf
    logs: DecisionLogs

    def policy_named(self, model: str | None) -> PolicyName | None:
        """The policy that a request names, if it does. Raises `ApiError` if there is no such one."""
        if model is None:
            return None
        try:
            found = self.policies.require(model)
        except ApiError as error:
            raise replace(error, param="policy") from None
        return PolicyName(name=found.name, sha256=found.sha256, model=found.policy.model)

    def run(
        self,
        job: JobRecord,
        key: Key,
        items: list[ItemBody] | None,
        output: str,
        count: Callable[[int], object],
        alive: Callable[[], object],
    ) -> None:
        """Submit a job; return once all of its items are known. Idempotent.

        Args:
            job: what is asked for.
            key: of its owner.
            items: of a request that holds them.
            output: where its results go.
            count: called now and then with the number of items so far; raises to stop.
            alive: called before each own file; raises to stop.

        Raises:
            ApiError: an item that the key may not read, or whatever `count` raises.
            UsageError: see `Client.classify`.
            WorldError: Redis, the place or the source is unavailable; run it again.
        """
        asked = job.asked
        source = self._source(job, key, items, count, alive)
        options = job_options(asked, job_id=job.id, lane=key.lane, output=output)
        if job.policy is not None:
            policy = self.policies.file_of(self.policies.load(job.policy.name, job.policy.sha256))
            self.client.moderate(source, policy, decisions=self.logs.place_of(job.owner), options=options)
        elif asked.task is JobTask.EMBED_TEXT:
            self.client.embed_text(source, text_column=asked.text_column, options=options)
        elif asked.task is JobTask.EMBED:
            self.client.embed(source, options=options)
        else:
            self.client.classify(
                source, label_sets(asked), top_k=asked.top_k, label_set_column=asked.label_set_column,
                options=options,
            )  # fmt: skip

    def _source(
        self,
        job: JobRecord,
        key: Key,
        items: list[ItemBody] | None,
        count: Callable[[int], object],
        alive: Callable[[], object],
    ) -> Source:
        asked, holds_texts = job.asked, job.asked.task is JobTask.EMBED_TEXT

        def check(address: str) -> None:
            require_readable(address, key, None)

        checked = partial(CheckedSource, check=None if holds_texts else check, count=count)
        if job.source is None:
            options = ReadOptions(content_field(asked), asked.id_column, holds_texts=holds_texts)
            read = [self._item(item, job.owner, asked, alive) for item in items or ()]
            return checked(source_of(read, options))
        column = asked.text_column if holds_texts else asked.url_column
        options = ReadOptions(column, asked.id_column, asked.base_uri, holds_texts=holds_texts)
        if not is_file_id(job.source):
            return checked(place_of_key(job.source, key, options))
        file = own_list(self.files, job.owner, job.source)
        opened = file.as_list(options)
        return checked(opened, line_of=lambda index: file.line_of(opened.description.kind, index))

    def _item(
        self, item: ItemBody, owner: str, asked: JobBody, alive: Callable[[], object]
    ) -> dict[str, Any]:
        """An item with its columns, and the content of an own file in place of its id."""
        field = content_field(asked)
        columns: dict[str, Any] = {field: item} if isinstance(item, str) else dict(item)
        address = columns[field]
        if asked.task is JobTask.EMBED_TEXT or not is_file_id(address):
            return columns
        alive()
        data = self.files.read(owner, address)
        if data is None:
            raise SourceError(f"{address} was deleted before it was read")
        return {**columns, field: None, "bytes": data}


def content_field(asked: JobBody) -> str:
    """The field of an item with its text or its address."""
    return (asked.text_column or "text") if asked.task is JobTask.EMBED_TEXT else (asked.url_column or "url")


def require_allowed(request: JobRequest, key: Key, files: FileStore) -> None:
    """Check what can be checked before the source is read.

    Raises:
        ApiError: the model, the labels, an item or the source is wrong, or the key must not read it.
    """
    try:
        normalise_model(request.model)
    except ValueError as error:
        raise invalid(f"model: {error}", "model") from None
    if request.task is JobTask.CLASSIFY:
        label_sets(request)
    if request.source is not None:
        if is_file_id(request.source):
            own_list(files, key.name, request.source)
        else:
            require_place(request.source, key)
    if request.items is not None and request.base_uri is not None:
        raise invalid("base_uri is for names in a list: write whole URLs in items", "base_uri")
    own_files = OwnFiles(files, key.name, MOST_ITEMS_BYTES)
    for index, item in enumerate(request.items or ()):
        _require_item(item, request, key, own_files, f"items[{index}]")


def _require_item(item: ItemBody, asked: JobBody, key: Key, own_files: OwnFiles, param: str) -> None:
    field = content_field(asked)
    address = item if isinstance(item, str) else item.get(field)
    if not isinstance(address, str):
        raise invalid(f"{param} has no {field!r} with a text", param)
    if asked.task is JobTask.EMBED_TEXT or address[: len(DATA)].lower() == DATA:
        return
    if is_file_id(address):
        own_files.add(address, param)
    else:
        require_readable(address, key, param)


def job_options(asked: JobBody, **own: Any) -> JobOptions:
    """The options of a job, with the gateway's own."""
    shared = asked.model_dump(
        include={"model", "precision", "decode", "exif", "sample", "vector_type", "max_error_rate"}
    )
    return JobOptions(**shared, store_embeddings=asked.embedding, part_format=asked.format, **own)


def label_sets(asked: JobBody) -> tuple[LabelSet, ...]:
    """The label sets of a task that classifies. Raises `ApiError`."""
    try:
        if asked.labels is not None:
            return label_sets_of(asked.labels, asked.templates, multi=asked.multi, none=asked.none)
        made = []
        for name, body in (asked.label_sets or {}).items():
            # What has its default may not be given at all: a background, say, is of some kinds only
            given = body.model_dump(exclude_defaults=True, by_alias=True)
            with usage_errors(f"{name}: "):
                made.append(LabelSetSpec.model_validate(given).made(name))
        return tuple(made)
    except UsageError as error:
        name = "labels" if asked.labels is not None else "label_sets"
        raise invalid(f"{name}: {error}", name) from None
