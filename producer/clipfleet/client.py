"""The Python API: submit jobs and look them up. `Client().classify("photos/", ["cat", "dog"]).wait()`

Celery and pyarrow are imported by the methods that need them: `clipfleet status` needs neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from clipfleet.backfill.options import DEFAULT_BACKFILL, BackfillOptions
from clipfleet.contract.job_names import UNNAMED_JOB_ID_PATTERN
from clipfleet.contract.jobs import Job, JobState, StoredVectors, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import JobNotFoundError, JobUnreadableError, OutputConflictError, UsageError
from clipfleet.job_handle import JobHandle
from clipfleet.labels.sets import Labels, label_sets_of, require_no_labels_needed
from clipfleet.ledger.jobs import JobStatus, Ledger, Quota, Retention, WorkerFacts
from clipfleet.ledger.status import UnfinishedJobs
from clipfleet.redis.connection import connect
from clipfleet.redis.patience import PATIENCE_SECONDS, OnTrouble, Patience, is_unready, log_trouble
from clipfleet.settings import Settings, checked
from clipfleet.submit.options import (
    DEFAULT_OPTIONS,
    DecisionPlace,
    JobDescription,
    JobOptions,
    JobSpec,
    make_job,
)
from clipfleet.tracing import Tracing, tracing_of

if TYPE_CHECKING:
    from clipfleet.backfill.items import ComparedItems, OnListed
    from clipfleet.backfill.migrating import StoreMigration
    from clipfleet.backfill.night import Backfill
    from clipfleet.backfill.rounds import Services
    from clipfleet.contract.stores import StoreTarget
    from clipfleet.heads.choosing import HeadLike
    from clipfleet.heads.files import HeadFile
    from clipfleet.hints import Hints
    from clipfleet.ledger.locks import Locks
    from clipfleet.ledger.row_store import RedisStore
    from clipfleet.moderation.policy_files import PolicyFile
    from clipfleet.outputs import Output
    from clipfleet.relabel.origin import Origin
    from clipfleet.replay.outcome import Replayed
    from clipfleet.replay.replaying import Wait
    from clipfleet.results.rows import RowReader
    from clipfleet.results.vector_ranges import VectorRanges
    from clipfleet.sources import Source, SourceLike
    from clipfleet.store.place import StorePlace
    from clipfleet.submit.submission import GoneItems

__all__ = ["BackfillOptions", "Client", "JobHandle", "JobOptions", "JobSpec"]

_REPLAYS_KEPT_SECONDS = 3600  # rows in Redis that a replay compares, and then nobody needs

T = TypeVar("T")


class Client:
    """Submits jobs and looks them up. Close it, or use it as a context manager.

    Args:
        settings: the URL of the Redis (`redis://host:6379/0`), with all else from the environment; or all
            settings. Default: from the environment.
        patience_seconds: upper bound for waiting out one Redis outage during a submit, a retry or a rebuild;
            0 disables waiting. The first call of each, `job`, `cancel`, `pause` and `resume` wait as long,
            but only for a Redis that is reachable and loads its data, fails over, refuses writes because its
            disk is full, or does not respond. `JobHandle.wait` has no bound; other calls never wait.
        on_trouble: called with a message when such a wait begins, when Redis is back, when an overwrite waits
            for workers; possibly from another thread. Default: log it.
        resumes: the caller repeats a submit until it succeeds, or cancels the job: an output that is
            unreachable for a while cancels no new job.
        tracing: creates the spans of submits; closed with this client. Default: as `OTEL_*` variables say.
    """

    def __init__(
        self,
        settings: Settings | str | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        on_trouble: OnTrouble = log_trouble,
        resumes: bool = False,
        tracing: Tracing | None = None,
    ) -> None:
        self._resumes = resumes
        self._patience = partial(Patience, patience_seconds, on_trouble)
        self._say = on_trouble
        if isinstance(settings, str):
            connect(settings, origin="the URL given to Client").close()
            settings = checked(Settings, redis_url=settings)
        elif settings is not None and not isinstance(settings, Settings):
            kind = type(settings).__name__
            raise UsageError(f"Client(settings={kind}): give the URL of the Redis as text, or Settings")
        self._settings = settings or checked(Settings)
        self._tracing = tracing or tracing_of("clipfleet")
        quota = Quota(self._settings.quota_items, self._settings.quota_bytes)
        self._ledger = Ledger(self._settings.require_redis_url(), quota=quota)
        self._settings.require_broker_url()  # fail early, `_hints` is made late
        self._opened = ExitStack()
        self._opened.callback(self._tracing.close)
        self._opened.callback(self._ledger.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Jobs keep running."""
        self._opened.close()

    @cached_property
    def _store(self) -> RedisStore:
        from clipfleet.ledger.row_store import RedisStore

        store = RedisStore(self._settings.require_redis_url())
        self._opened.callback(store.close)
        return store

    @cached_property
    def _locks(self) -> Locks:
        from clipfleet.ledger.locks import Locks

        locks = Locks(self._settings.require_redis_url())
        self._opened.callback(locks.close)
        return locks

    @cached_property
    def _hints(self) -> Hints:
        from clipfleet.hints import Hints, make_app

        broker_url = self._settings.require_broker_url()
        hints = Hints(make_app(broker_url), broker_url)
        self._opened.callback(hints.close)
        return hints

    def classify(
        self,
        source: SourceLike,
        labels: Labels | None = None,
        *,
        heads: HeadLike | Sequence[HeadLike] = (),
        templates: Sequence[str] = (),
        multi: bool = False,
        none: bool = False,
        top_k: int = 5,
        label_set_column: str | None = None,
        options: JobOptions = DEFAULT_OPTIONS,
    ) -> JobHandle:
        """Label every image of a source with its best-matching labels. Returns once all items are staged.

        Args:
            source: see docs/first-minute.md.
            labels: names; or a mapping of set names to names, all used on every image; or `LabelSet`s; or
                `"imagenet1k"`. See docs/label-sets.md. None: heads only.
            heads: files of heads, used on every image. See docs/heads.md.
            templates: prompts with `{}` for the label, averaged. Default: `a photo of a {}`.
            multi: an image may have any number of the labels: each one that reaches its threshold.
            none: an image may have none of the labels: the best one must reach its threshold.
            top_k: labels to keep per image and set.
            label_set_column: source column that names the one label set of each item.
            options: see `JobOptions`.

        Raises:
            UsageError: see `clipfleet.errors`; the message says what to change.
            WorldError: Redis or the output is unavailable.
        """
        from clipfleet.heads.choosing import read_heads

        chosen = read_heads(heads)
        label_sets = _label_sets(labels, templates, multi=multi, none=none, has_heads=bool(chosen))
        return self._submit(
            source, options, Task.CLASSIFY, label_sets, heads=chosen, top_k=top_k,
            label_set_column=label_set_column,
        )  # fmt: skip

    def run(self, spec: JobSpec) -> JobHandle:
        """Submit the job described by a `JobSpec`; otherwise like `classify`."""
        from clipfleet.heads.choosing import read_heads

        return self._submit(
            spec.source, spec, spec.task, spec.made_label_sets(),
            heads=read_heads(spec.heads), top_k=spec.top_k, label_set_column=spec.label_set_column,
        )  # fmt: skip

    def moderate(
        self,
        source: SourceLike,
        policy: str | Path | PolicyFile,
        *,
        decisions: str | Path | DecisionPlace | None = None,
        keep_decisions_days: int | None = None,
        options: JobOptions = DEFAULT_OPTIONS,
    ) -> JobHandle:
        """Decide on every image of a source by a policy; otherwise like `classify`.

        Args:
            source: see docs/first-minute.md.
            policy: its file. See docs/moderation.md.
            decisions: a folder or `s3://BUCKET/PREFIX` to which the records of the decisions are added.
                Default: the output, unless that is Redis, which keeps them as long as the rows.
            keep_decisions_days: how long the records are kept. Default: for ever.
            options: those of the model must be left out: the policy has them.
        """
        from clipfleet.moderation.policy_files import PolicyFile, read_policy_file

        chosen = policy if isinstance(policy, PolicyFile) else read_policy_file(policy)
        if isinstance(decisions, DecisionPlace):
            place = decisions
        else:
            place = DecisionPlace(None if decisions is None else str(decisions), keep_decisions_days)
        found = chosen.policy
        return self._submit(
            source, chosen.described(options), Task.CLASSIFY, found.label_sets, heads=chosen.heads,
            top_k=found.most_labels, policy=found.of_a_job(), decisions=place,
        )  # fmt: skip

    def embed(
        self,
        source: SourceLike,
        *,
        heads: HeadLike | Sequence[HeadLike] = (),
        options: JobOptions = DEFAULT_OPTIONS,
    ) -> JobHandle:
        """Compute an embedding of every image of a source; otherwise like `classify`."""
        from clipfleet.heads.choosing import read_heads

        return self._submit(source, options, Task.EMBED, heads=read_heads(heads))

    def embed_text(
        self, source: SourceLike, *, text_column: str | None = None, options: JobOptions = DEFAULT_OPTIONS
    ) -> JobHandle:
        """Embed every text of a source, to search images with; otherwise like `classify`.

        Args:
            source: a `.txt` with one text per line, a table, or an iterable of strings and dicts.
            text_column: table column with the text. Default: `text` or `caption`.
            options: `url_column` and `base_uri` are ignored. `decode` and `exif` change no vector, but belong
                to `model_fingerprint`: give those of the images that the texts are compared with.
        """
        return self._submit(source, options, Task.EMBED_TEXT, text_column=text_column)

    def relabel(
        self,
        origin: JobHandle | str | Path,
        labels: Labels | None = None,
        *,
        heads: HeadLike | Sequence[HeadLike] = (),
        templates: Sequence[str] = (),
        multi: bool = False,
        none: bool = False,
        top_k: int = 5,
        label_set_column: str | None = None,
        as_of: str | None = None,
        options: JobOptions = DEFAULT_OPTIONS,
    ) -> JobHandle:
        """Label the stored vectors of a finished job, or of a store, without images; else like `classify`.

        The rows keep what does not depend on labels, failed rows their errors.

        Args:
            origin: the job, or the path or `s3://` URI of its output, or of a store.
            labels: as of `classify`, like the following ones.
            heads: likewise.
            templates: likewise.
            multi: likewise.
            none: likewise.
            top_k: likewise.
            label_set_column: likewise.
            as_of: version of a store, or a date: it is read as it was. Default: the newest.
            options: those of the model and of images must be left out: the vectors have them. With
                `store_embeddings` the vectors are copied, of their type unless `vector_type` is given.
        """
        from clipfleet.heads.choosing import read_heads

        chosen = read_heads(heads)
        label_sets = _label_sets(labels, templates, multi=multi, none=none, has_heads=bool(chosen))
        self._first().ping()
        found = self._origin(self._reader(origin, as_of), _job_id_of(origin))
        return self._submit_vectors(
            found, options, label_sets, heads=chosen, top_k=top_k, label_set_column=label_set_column
        )

    def replay(
        self,
        origin: JobHandle | str | Path,
        policy: str | Path | PolicyFile,
        *,
        against: str | Path | PolicyFile | None = None,
        as_of: str | None = None,
        changes: str | Path | None = None,
        wait: Wait = JobHandle.wait,
        options: JobOptions = DEFAULT_OPTIONS,
    ) -> Replayed:
        """Decide by another policy without images, and compare. Blocks; records and announces nothing.

        Args:
            origin: a finished moderation job; or any job with vectors, or a store, with `against`. See
                `relabel`.
            policy: the file of the new policy.
            against: that of the old one. Default: the policy of the job.
            as_of: see `relabel`.
            changes: a .jsonl, .csv or .parquet file for all items that change side.
            wait: blocks until a job has ended.
            options: `output`, `overwrite`, `part_format`, `lane` and `chunk_size`. With an output, the
                decided rows are kept in its folders `old` and `new`. Default: in Redis for an hour, up to
                100,000 items.

        Raises:
            UsageError: see `Replay.run`; the message says what to change.
            WorldError: likewise.
        """
        from clipfleet.moderation.policy_files import PolicyFile, read_policy_file
        from clipfleet.replay.replaying import Replay, Services

        def policy_of(given: str | Path | PolicyFile) -> PolicyFile:
            return given if isinstance(given, PolicyFile) else read_policy_file(given)

        self._first().ping()
        reader, job_id = self._reader(origin, as_of), _job_id_of(origin)
        services = Services(
            partial(self._origin, reader, job_id), self._policy_of, self._submit_replay,
            partial(self._ledger.cancel, ttl_seconds=_REPLAYS_KEPT_SECONDS),
        )  # fmt: skip
        return Replay(
            reader=reader, services=services, new=policy_of(policy),
            against=None if against is None else policy_of(against), options=options,
            changes=None if changes is None else Path(changes), wait=wait,
        ).run()  # fmt: skip

    def backfill(
        self,
        source: SourceLike,
        store: str | Path,
        *,
        options: BackfillOptions = DEFAULT_BACKFILL,
        on_listed: OnListed = lambda count: None,
    ) -> Backfill:
        """Fill a store with what a source has new or changed, and mark what is gone.

        Nothing is done before `Backfill.begin` or `wait`: `client.backfill("photos/", "store").wait()`.

        Args:
            source: see docs/first-minute.md. An item without an id is named by its URI.
            store: a folder or `s3://BUCKET/PREFIX`; it is made if it is not there.
            options: see `BackfillOptions`.
            on_listed: called now and then with the number of items that were compared so far.

        Raises:
            UsageError: the extra `[store]` is not installed, or no store can be there.
            WorldError: Redis or the store is unavailable.
        """
        from clipfleet.backfill.night import Backfill
        from clipfleet.backfill.opening import listed_source

        place = self._place(store)
        return Backfill(
            self._services(), place, partial(listed_source, source, options, place.uri), options, on_listed
        )

    def migrate(
        self,
        source: SourceLike,
        store: str | Path,
        *,
        options: BackfillOptions,
        most_failed: float | None = 0.0,
        on_listed: OnListed = lambda count: None,
    ) -> StoreMigration:
        """Fill other vectors beside those of a store, and switch to them. Nothing is done before `run`.

        Args:
            source: see `backfill`.
            store: see `backfill`; it must be there.
            options: with what differs from the store, such as the model.
            most_failed: share of the items with current vectors that may be left without new ones; None: any.
            on_listed: see `backfill`.

        Raises:
            The same as `backfill`.
        """
        from clipfleet.backfill.migrating import StoreMigration
        from clipfleet.backfill.opening import listed_source

        place = self._place(store)
        return StoreMigration(
            self._services(), place, partial(listed_source, source, options, place.uri), options,
            most_failed, on_listed,
        )  # fmt: skip

    def abandon_migration(self, store: str | Path) -> bool:
        """End a migration without a switch; False if there is none. Raises like `backfill`."""
        from clipfleet.backfill.migrating import abandon_migration

        return abandon_migration(self._services(), self._place(store))

    def _place(self, store: str | Path) -> StorePlace:
        from clipfleet.backfill.opening import open_place
        from clipfleet.store.extra import require_store

        require_store()
        self._first().ping()
        return open_place(str(store))

    def _services(self) -> Services:
        from clipfleet.backfill.rounds import Services

        patience = self._patience()
        ledger = self._ledger.with_patience(patience)

        def submit(
            items: ComparedItems, described: JobOptions, target: StoreTarget, gone: GoneItems
        ) -> JobHandle:
            return self._submit(items, described, Task.EMBED, store=target, gone=gone)

        return Services(
            ledger,
            self._locks.with_patience(patience),
            submit,
            self.job,
            self.rebuild,
            partial(ledger.cancel, ttl_seconds=self._settings.job_ttl_seconds),
            self._say,
        )

    def _reader(self, origin: JobHandle | str | Path, as_of: str | None) -> RowReader:
        from clipfleet.results.places import open_rows

        if isinstance(origin, JobHandle):
            if as_of is not None:
                raise UsageError(f"{origin.job_id} is a job: only stores have versions, leave `as_of=` out")
            return origin.rows_reader()
        return open_rows(str(origin), as_of)

    def _origin(self, reader: RowReader, job_id: str | None) -> Origin:
        from clipfleet.relabel.origin import origin_of, origin_of_store
        from clipfleet.results.store_rows import StoreRows

        if isinstance(reader, StoreRows):
            return origin_of_store(reader)
        return origin_of(reader, self._open_ranges, job_id)

    def _submit_vectors(
        self,
        found: Origin,
        options: JobOptions,
        label_sets: Sequence[LabelSet],
        *,
        heads: Sequence[HeadFile],
        **asked: Any,
    ) -> JobHandle:
        from clipfleet.heads.choosing import require_length
        from clipfleet.relabel.source import VectorSource

        size, vectors = found.chunk_size(options.chunk_size), found.vectors
        described = found.described(options).model_copy(update={"chunk_size": size})
        require_length(heads, found.job.model, vectors.dimension)
        return self._submit(
            VectorSource(found, size), described, Task.CLASSIFY, label_sets, heads=heads, vectors=vectors,
            **asked,
        )  # fmt: skip

    def _submit_replay(self, found: Origin, chosen: PolicyFile, options: JobOptions) -> JobHandle:
        policy, seconds = chosen.policy, _REPLAYS_KEPT_SECONDS
        return self._submit_vectors(
            found, options, policy.label_sets, heads=chosen.heads, top_k=policy.most_labels,
            policy=policy.of_a_job(is_dry=True),
            retention=Retention(seconds, seconds) if options.output is None else None,
        )  # fmt: skip

    def _policy_of(self, job: Job, known: Sequence[HeadFile]) -> PolicyFile:
        from clipfleet.outputs import output_of
        from clipfleet.replay.earlier import policy_of_job

        return policy_of_job(job, output_of(job, self._store), known)

    def _open_ranges(self, job: Job, vectors: StoredVectors) -> VectorRanges:
        from clipfleet.outputs import open_output
        from clipfleet.results.vector_ranges import PartRanges, RedisRanges

        columns = job.source.extra_columns
        if not job.output_is_redis:
            return PartRanges(open_output(vectors.uri), vectors, columns)
        return RedisRanges(self._store, vectors, columns, items=self._ledger.status(job.job_id).total)

    def job(self, job_id: str) -> JobHandle:
        """Return an existing job.

        Raises:
            JobNotFoundError: no such job.
        """
        return self._handle(self._first().job(job_id))

    def last(self) -> JobHandle:
        """Return the newest job that a user submitted: those of evaluations and searches do not count.

        Raises:
            JobNotFoundError: there is none.
        """
        ledger, limit = self._first(), 1
        while True:
            newest = ledger.jobs(limit)
            for one in newest:
                if not re.fullmatch(UNNAMED_JOB_ID_PATTERN, one.job_id):
                    return self.job(one.job_id)
            if len(newest) < limit:
                raise JobNotFoundError("no job has been submitted to this Redis yet, or all have expired")
            limit *= 10

    def rebuild(self, output: str | Path) -> JobHandle:
        """Restore the job of an output if the ledger has lost it, and resume it.

        A job that the ledger knows is left unchanged, but gets the staged files that a restored copy of Redis
        lacks. A job whose items are not all staged (`status().sealed`) is resumed by the same submit.

        Raises:
            JobNotFoundError: no job has this output.
            UsageError: the output was moved, or contains parts of another job; or the vectors that the job
                labels are gone.
            WorldError: Redis or the output is unavailable.
        """
        from clipfleet.outputs import open_output
        from clipfleet.outputs.job_file import job_of
        from clipfleet.store.place import no_job_of

        given = open_output(str(output))
        job = job_of(given)
        if job is None:
            raise no_job_of(given)
        place = open_output(job.output)
        if job_of(place) != job:
            raise OutputConflictError(
                f"{given.uri} was moved here from {job.output}: move it back there first"
            )
        self._first().ping()
        state = self._rebuild(place, job, self._ledger.with_patience(self._patience()))
        return self._handle(job, had_ended=state.is_final)

    def jobs(self, limit: int = 50) -> list[JobStatus]:
        """List jobs, newest first; `brief` of each says what it does."""
        return self._ledger.jobs(limit)

    def unfinished(self, also: Collection[str] = ()) -> UnfinishedJobs:
        """List the newest 100 unfinished jobs, newest first, then those `also` that are not among them."""
        return self._ledger.unfinished(also=also)

    def workers(self) -> list[WorkerFacts]:
        """List workers with a heartbeat in the last 30 s."""
        return self._ledger.workers()

    def _submit(
        self,
        source: SourceLike,
        described: JobDescription,
        task: Task,
        label_sets: Sequence[LabelSet] = (),
        *,
        heads: Sequence[HeadFile] = (),
        text_column: str | None = None,
        gone: GoneItems | None = None,
        retention: Retention | None = None,
        **asked: Any,
    ) -> JobHandle:
        from clipfleet.heads.choosing import require_model
        from clipfleet.outputs import output_of, output_uri
        from clipfleet.outputs.job_file import job_of
        from clipfleet.outputs.overwriting import Overwriting
        from clipfleet.submit.submission import Submission, naming_the_way_out

        self._first().ping()  # fail fast on a wrong URL; later calls wait for Redis
        patience = self._patience()
        ledger, store = self._ledger.with_patience(patience), self._store.with_patience(patience)
        if described.output is not None:
            output_uri(described.output)  # fail before the source is read
        opened = _open_source(source, described, task, text_column)
        job = make_job(opened, described, task, label_sets, heads=[one.of_job for one in heads], **asked)
        require_model(heads, job.model, decode=job.decode, exif=job.exif)
        output = output_of(job, store)
        with naming_the_way_out(job):
            holder = None if job.output_is_redis else job_of(output)
        chooses_size = described.chunk_size is None
        if chooses_size and described.job_id is not None:
            known = _known_job(job.job_id, holder, ledger)
            if known is not None:  # it keeps the size that its first submit has chosen
                job, chooses_size = job.model_copy(update={"chunk_size": known.chunk_size}), False
        if holder is not None and holder.is_same(job):
            self._rebuild(output, holder, ledger)  # a no-op unless the ledger has lost some of it
        if retention is None:
            retention = Retention(self._settings.job_ttl_seconds, self._settings.result_ttl_seconds)
        about = {"job_id": job.job_id, "task": job.task, "model": job.model, "lane": job.lane}
        with self._tracing.span("submit", attributes=about) as traceparent:
            overwriting = Overwriting(
                ledger, output, job, write_limit_seconds=self._settings.write_limit_seconds, say=self._say
            )
            submission = Submission(
                ledger, self._hints, output, job, retention, traceparent, overwriting,
                chooses_chunk_size=chooses_size, heads=heads, gone=gone, resumes=self._resumes,
                on_claimed=partial(_keep_policy, job),
            )  # fmt: skip
            run = partial(submission.run, overwrite=described.overwrite, check_source=described.check_source)
            had_ended = _run_without_pauses(opened, run, patience)
        return self._handle(submission.job, had_ended=had_ended, whole_items=_whole_items(opened))

    def _first(self) -> Ledger:
        """The ledger for a first call, which fails at once if no server listens at the address."""
        return self._ledger.with_patience(self._patience(awaits=is_unready))

    def _rebuild(self, output: Output, job: Job, ledger: Ledger) -> JobState:
        from clipfleet.relabel.still_there import require_vectors
        from clipfleet.resume.rebuild import Rebuild

        require = partial(require_vectors, job, self._store)
        return Rebuild(ledger, self._hints, output, job, self._settings.job_ttl_seconds, require).run()

    def _handle(self, job: Job, *, had_ended: bool = False, whole_items: int | None = None) -> JobHandle:
        return JobHandle(
            self._ledger,
            lambda: self._store,
            lambda: self._hints,
            job,
            self._settings,
            self._patience,
            had_ended=had_ended,
            whole_items=whole_items,
        )


def _job_id_of(origin: JobHandle | str | Path) -> str | None:
    return origin.job_id if isinstance(origin, JobHandle) else None


def _label_sets(
    labels: Labels | None, templates: Sequence[str], *, multi: bool, none: bool, has_heads: bool
) -> tuple[LabelSet, ...]:
    """The label sets of a job; those of a job with heads only are none."""
    if labels is not None:
        return label_sets_of(labels, templates, multi=multi, none=none)
    options = {"`templates=`": templates, "`multi=`": multi, "`none=`": none}
    require_no_labels_needed(options, "labels", has_heads=has_heads, otherwise="labels, or `heads=`")
    return ()


def _open_source(
    source: SourceLike,
    described: JobDescription,
    task: Task,
    text_column: str | None,
) -> Source:
    from clipfleet.sources import ReadOptions, source_of
    from clipfleet.sources.texts import text_source_of

    id_column, sample = described.id_column, described.sample
    if task is Task.EMBED_TEXT:
        return text_source_of(source, text_column=text_column, id_column=id_column, sample=sample)
    return source_of(source, ReadOptions(described.url_column, id_column, described.base_uri, sample=sample))


def _keep_policy(job: Job) -> None:
    """Begin the log of decisions of a moderation job that records them."""
    if job.decisions is not None:
        from clipfleet.moderation.log import write_policy
        from clipfleet.outputs import open_output

        write_policy(open_output(job.decisions.uri), job)


def _whole_items(source: Source) -> int | None:
    """Items of the whole source of a sample that has been read; None if it is no sample."""
    from clipfleet.sources.sampled import SampledSource
    from clipfleet.sources.texts import TextSource

    items = source.items if isinstance(source, TextSource) else source
    return items.whole_items if isinstance(items, SampledSource) else None


def _known_job(job_id: str, holder: Job | None, ledger: Ledger) -> Job | None:
    """The job of an earlier submit with this id: `holder`, which has the output, or that of the ledger."""
    if holder is not None and holder.job_id == job_id:
        return holder
    with suppress(JobNotFoundError, JobUnreadableError):  # the submit raises what it has to
        return ledger.job(job_id)
    return None


def _run_without_pauses(source: Source, run: Callable[[Source], T], patience: Patience) -> T:
    """Run a submit; if the source may pause, stage the items so far in another thread meanwhile."""
    from clipfleet.sources.handover import run_beside
    from clipfleet.sources.iterable import IterableSource
    from clipfleet.sources.texts import TextSource

    items = source.items if isinstance(source, TextSource) else source
    if not (isinstance(items, IterableSource) and items.may_pause):
        return run(source)
    if isinstance(source, TextSource):
        return run_beside(items, lambda handed_over: run(source.over(handed_over)), patience.give_up)
    return run_beside(items, run, patience.give_up)
