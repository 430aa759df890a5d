"""For programs: submit jobs and follow them. `Client().classify("photos/", ["cat", "dog"]).wait()`"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from clipfleet import results
from clipfleet.contract import (
    DEFAULT_CELERY_QUEUE,
    DEFAULT_CHUNK_SIZE,
    DEFAULT_MODEL,
    JOB_ID_PATTERN,
    REDIS_OUTPUT,
    DecodeRoute,
    ErrorCode,
    Job,
    JobState,
    LabelSet,
    Lane,
    PartFormat,
    Precision,
    Task,
    new_job_id,
)
from clipfleet.errors import JobNotFoundError, OutputConflictError, RedisUnavailableError, UsageError
from clipfleet.exports import ExportCounts, Layout, export
from clipfleet.hints import Hints, make_app
from clipfleet.inventory import parts_in_place
from clipfleet.job_file import job_of
from clipfleet.job_spec import JobSpec
from clipfleet.label_sets import Labels, label_sets_of
from clipfleet.ledger import JobStatus, Ledger, Retention, WorkerFacts
from clipfleet.model_names import normalise_model
from clipfleet.outputs import Output, open_output, output_of, output_uri
from clipfleet.parts import extra_column_name
from clipfleet.rebuild import Rebuild
from clipfleet.redis_results import RedisRows
from clipfleet.redis_store import RedisStore
from clipfleet.results import PartRows, RowReader
from clipfleet.retry import Parts, Retry
from clipfleet.settings import Settings, load_settings
from clipfleet.sources import ReadOptions, Source, SourceLike, source_of
from clipfleet.sources.handover import run_beside
from clipfleet.sources.iterable import IterableSource
from clipfleet.sources.texts import TextSource, text_source_of
from clipfleet.submission import Submission, naming_the_way_out

if TYPE_CHECKING:
    import numpy as np

_POLL_SECONDS = 1.0
_BREATH_SECONDS = 0.1  # between two looks at a job whose chunks end quickly

OnProgress = Callable[[JobStatus], None]
OnTrouble = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What `classify` and `embed` have in common."""

    # A folder or s3://BUCKET/PREFIX; by default the ledger's own Redis, for up to 100,000 items.
    output: str | Path | None = None
    model: str = DEFAULT_MODEL
    precision: Precision = Precision.AUTO
    decode: DecodeRoute = DecodeRoute.FAST
    lane: Lane = Lane.NORMAL
    chunk_size: int = DEFAULT_CHUNK_SIZE
    job_id: str | None = None  # repeat it to resume a submit, or to get the existing job back
    overwrite: bool = False  # of an output that holds another, ended job
    url_column: str | None = None
    id_column: str | None = None
    base_uri: str | None = None  # what bare keys and relative paths of a manifest are below
    store_embeddings: bool = False  # also of a classify job
    part_format: PartFormat = PartFormat.PARQUET
    on_finished: str | None = None  # a Celery task of yours, sent when the job has ended
    on_finished_queue: str = DEFAULT_CELERY_QUEUE  # where its worker takes it from


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked about every image, beside its vector."""

    label_sets: tuple[LabelSet, ...] = ()
    top_k: int = 5
    label_set_column: str | None = None


class Client:
    """Makes jobs and finds them again. Close it, or use it as a context manager."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or load_settings()
        self._ledger = Ledger(self._settings.require_redis_url())
        self._store = RedisStore(self._settings.require_redis_url())
        broker_url = self._settings.require_broker_url()
        self._hints = Hints(make_app(broker_url), broker_url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; jobs go on."""
        self._hints.close()
        self._store.close()
        self._ledger.close()

    def classify(
        self,
        source: SourceLike,
        labels: Labels,
        *,
        templates: Sequence[str] = (),
        top_k: int = 5,
        label_set_column: str | None = None,
        options: JobOptions = JobOptions(),
    ) -> JobHandle:
        """Label every image of a source with the best of some labels. Returns once all items are staged.

        Args:
            source: see the README.
            labels: names; or several sets of names by the name of the set, all used on every image; or
                `LabelSet`s; or `"imagenet1k"`.
            templates: prompts, `{}` is the label; several are averaged. None: `a photo of a {}`.
            top_k: how many labels are kept per image and set.
            label_set_column: column of the source that names the one set to be used on an item.
            options: see `JobOptions`.

        Raises:
            UsageError: see `clipfleet.errors`; the message says what to change.
            WorldError: Redis or the output is away.
        """
        question = _Question(label_sets_of(labels, templates), top_k, label_set_column)
        return self._submit(source, Task.CLASSIFY, options, question)

    def run(self, spec: JobSpec) -> JobHandle:
        """Submit the job that a `clipfleet.job_spec.JobSpec` describes; otherwise like `classify`."""
        question = _Question(spec.made_label_sets(), spec.top_k, spec.label_set_column)
        options = JobOptions(
            output=spec.output, model=spec.model, precision=spec.precision, decode=spec.decode,
            lane=spec.lane, chunk_size=spec.chunk_size, job_id=spec.job_id, overwrite=spec.overwrite,
            url_column=spec.url_column, id_column=spec.id_column, base_uri=spec.base_uri,
            store_embeddings=spec.embedding, part_format=spec.format, on_finished=spec.on_finished,
            on_finished_queue=spec.on_finished_queue,
        )  # fmt: skip
        task = Task.CLASSIFY if question.label_sets else Task.EMBED
        return self._submit(spec.source, task, options, question)

    def embed(self, source: SourceLike, *, options: JobOptions = JobOptions()) -> JobHandle:
        """Turn every image of a source into a vector; otherwise like `classify`."""
        return self._submit(source, Task.EMBED, options)

    def embed_text(
        self, source: SourceLike, *, text_column: str | None = None, options: JobOptions = JobOptions()
    ) -> JobHandle:
        """Turn every text of a source into a vector, comparable with those of images; see `classify`.

        Args:
            source: a `.txt` with one text per line, a table, or an iterable of strings and dicts.
            text_column: of a table, where it is not called `text` or `caption`.
            options: `url_column`, `base_uri` and `decode` mean nothing here.
        """
        return self._submit(source, Task.EMBED_TEXT, replace(options, url_column=text_column))

    def job(self, job_id: str) -> JobHandle:
        """An existing job.

        Raises:
            JobNotFoundError: no such job.
        """
        return self._handle(self._ledger.job(job_id))

    def rebuild(self, output: str | Path) -> JobHandle:
        """The job of an output; it is put back if the ledger has lost it, and goes on where it was.

        A job that the ledger knows stays as it is. Of one whose items were not all staged yet
        (`status().sealed`) the same submit goes on.

        Raises:
            JobNotFoundError: no job has this output.
            UsageError: the output was moved, or holds something else than its job's parts.
            WorldError: Redis or the output is away.
        """
        given = open_output(str(output))
        job = job_of(given)
        if job is None:
            raise JobNotFoundError(f"{given.uri}: no job has this output")
        place = open_output(job.output)
        if job_of(place) != job:
            raise OutputConflictError(
                f"{given.uri} was moved here from {job.output}: move it back there first"
            )
        self._rebuild(place)
        return self._handle(job)

    def jobs(self, limit: int = 50) -> list[JobStatus]:
        """The newest jobs first."""
        return self._ledger.jobs(limit)

    def workers(self) -> list[WorkerFacts]:
        """Workers that were heard of in the last half minute."""
        return self._ledger.workers()

    def _submit(
        self,
        source: SourceLike,
        task: Task,
        options: JobOptions,
        question: _Question = _Question(),
    ) -> JobHandle:
        self._ledger.ping()
        if options.output is not None:
            output_uri(str(options.output))  # a wrong one is told before the source is looked at
        opened = _opened(source, task, options)
        job = _make_job(opened, task, options, question)
        output = output_of(job, self._store)
        with naming_the_way_out():
            holder = None if job.output_is_redis else job_of(output)
        if holder is not None and (holder.job_id, holder.fingerprint) == (job.job_id, job.fingerprint):
            self._rebuild(output)  # a submit that goes on after the ledger was lost
        retention = Retention(self._settings.job_ttl_seconds, self._settings.result_ttl_seconds)
        submission = Submission(self._ledger, self._hints, output, job, retention)
        run = partial(submission.run, overwrite=options.overwrite)
        _run_without_pauses(opened, run)
        return self._handle(job)

    def _rebuild(self, output: Output) -> None:
        Rebuild(self._ledger, self._hints, output, self._settings.job_ttl_seconds).run()

    def _handle(self, job: Job) -> JobHandle:
        return JobHandle(self._ledger, self._store, self._hints, job, self._settings)


class JobHandle:
    """One job."""

    def __init__(self, ledger: Ledger, store: RedisStore, hints: Hints, job: Job, settings: Settings) -> None:
        self._ledger = ledger
        self._store = store
        self._hints = hints
        self._settings = settings
        self.job = job

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.job_id

    @property
    def output(self) -> str:
        """Where the rows are."""
        return self.job.output

    def status(self) -> JobStatus:
        """A snapshot. Raises `JobNotFoundError` once the ledger has forgotten the job."""
        return self._ledger.status(self.job_id)

    def wait(
        self,
        timeout_seconds: float | None = None,
        *,
        on_progress: OnProgress | None = None,
        on_trouble: OnTrouble | None = None,
    ) -> JobStatus:
        """Block until the job has ended; a Redis that is away is waited for.

        Args:
            timeout_seconds: give up then.
            on_progress: called with every snapshot, about once a second.
            on_trouble: called with a line for people when Redis does not answer.

        Raises:
            TimeoutError: the job has not ended in time; it goes on.
        """
        ends = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        last = "$"
        while True:
            try:
                status = self.status()
                if on_progress is not None:
                    on_progress(status)
                if status.state.is_final:
                    return status
                if ends is not None and time.monotonic() >= ends:
                    raise TimeoutError(f"job {self.job_id} is {status.state} after {timeout_seconds:g} s")
                last = self._ledger.wait_for_progress(self.job_id, last, _POLL_SECONDS)
                time.sleep(_BREATH_SECONDS)
            except RedisUnavailableError as error:
                if on_trouble is not None:
                    on_trouble(str(error))
                time.sleep(_POLL_SECONDS)

    def results(self) -> Iterator[dict[str, Any]]:
        """The rows that are there, as dicts, in the order of the source."""
        return results.rows(self.rows_reader())

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """`item_index` (n,) and the vectors (n, d) float16 of the rows that have one."""
        return results.vectors(self.rows_reader())

    def export(self, layout: Layout, folder: str | Path) -> ExportCounts:
        """Copy the rows that are there into a new folder, see `clipfleet.exports.export`."""
        return export(self.rows_reader(), layout, Path(folder))

    def failure_examples(self) -> dict[str, str]:
        """One detail for each error code, as far as that is told quickly."""
        if not self.job.output_is_redis:
            return results.failure_examples(open_output(self.output))
        codes = self.status().codes
        return self._redis_rows().failure_examples(codes) if codes else {}

    def rows_reader(self) -> RowReader:
        """The rows that are there, for `clipfleet.results` and `clipfleet.exports`."""
        return self._redis_rows() if self.job.output_is_redis else PartRows(open_output(self.output))

    def _redis_rows(self) -> RedisRows:
        return RedisRows(self._ledger, self._store, self.job)

    def cancel(self) -> tuple[bool, JobState]:
        """End the job early; False and its state if it is finishing or over."""
        return self._ledger.cancel(self.job_id, ttl_seconds=self._settings.job_ttl_seconds)

    def pause(self) -> tuple[bool, JobState]:
        """Hand out no more chunks; those under way are finished."""
        return self._ledger.pause(self.job_id, "paused by request")

    def resume(self) -> tuple[bool, JobState]:
        """Undo `pause`, also one that the job did itself."""
        return self._ledger.resume(self.job_id)

    def retry(self, codes: Sequence[str] = ()) -> bool:
        """Run the failed rows of an ended job again, in place, and whatever a cancelled or failed job left.

        Returns as soon as the job goes on: `wait` for its end. A retry that is under way is left alone.

        Args:
            codes: only rows with these error codes; empty: all that failed.

        Returns:
            False if there is nothing to run again.

        Raises:
            JobNotFoundError: the ledger has forgotten the job: use `Client.rebuild` first.
            JobConflictError: the job has not ended yet, or another retry of it began at the same time.
            UsageError: there is no such error code, or the output does not hold this job any more.
            WorldError: Redis or the output is away.
        """
        known = [code for code in codes if code in list(ErrorCode)]
        if len(known) < len(codes):
            strange = next(code for code in codes if code not in known)
            raise UsageError(f"no error code is called {strange!r}: they are {', '.join(ErrorCode)}")
        output = output_of(self.job, self._store)
        parts: Parts = partial(parts_in_place, output, self.job)
        if self.job.output_is_redis:
            parts = self._redis_rows().parts_in_place
        retry = Retry(
            self._ledger,
            self._hints,
            output,
            parts,
            self.job,
            lease_seconds=self._settings.lease_seconds,
        )
        return retry.run([ErrorCode(code) for code in known])


def _opened(source: SourceLike, task: Task, options: JobOptions) -> Source:
    if task is Task.EMBED_TEXT:
        return text_source_of(source, text_column=options.url_column, id_column=options.id_column)
    return source_of(source, ReadOptions(options.url_column, options.id_column, options.base_uri))


def _run_without_pauses(source: Source, run: Callable[[Source], None]) -> None:
    """Run a submit; where the next item may be long in coming, what is there goes on meanwhile."""
    items = source.items if isinstance(source, TextSource) else source
    if not (isinstance(items, IterableSource) and items.may_pause):
        run(source)
    elif isinstance(source, TextSource):
        run_beside(items, lambda handed_over: run(source.over(handed_over)))
    else:
        run_beside(items, run)


def _make_job(source: Source, task: Task, options: JobOptions, question: _Question) -> Job:
    job_id = options.job_id or new_job_id()
    if not re.fullmatch(JOB_ID_PATTERN, job_id):
        raise UsageError(
            f"job id {job_id!r} cannot be used: it must begin with a letter or digit, and have at most 64 "
            "letters, digits, dots, underscores and hyphens"
        )
    output = output_uri(str(options.output or REDIS_OUTPUT))
    if output == REDIS_OUTPUT and options.part_format is not PartFormat.PARQUET:
        raise UsageError(f"--format {options.part_format} is for parts: give an --output, Redis has none")
    try:
        return Job(
            job_id=job_id,
            task=task,
            model=normalise_model(options.model),
            precision=options.precision,
            decode=options.decode,
            label_sets=question.label_sets,
            label_set_column=_column(source, question.label_set_column),
            text_column=source.text_column if isinstance(source, TextSource) else None,
            store_embeddings=options.store_embeddings and task is Task.CLASSIFY,
            part_format=options.part_format,
            on_finished=options.on_finished,
            on_finished_queue=options.on_finished_queue,
            top_k=question.top_k,
            lane=options.lane,
            chunk_size=options.chunk_size,
            source=source.description,
            output=output,
            created_at=datetime.now(UTC),
        )
    except ValidationError as error:
        raise UsageError(_first_problem(error)) from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def _column(source: Source, name: str | None) -> str | None:
    """The staged name of a column of the source, which may be told without regard to case."""
    if name is None:
        return None
    wanted = (extra_column_name(name), extra_column_name(name.lower()))
    names = {column.lower(): column for column in source.description.extra_columns}
    return next((names[one.lower()] for one in wanted if one.lower() in names), name)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    text = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text
