"""The command that fills a store with what a source has new, night after night."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from clipfleet.backfill.options import BackfillOptions
from clipfleet.commands.connecting import open_client
from clipfleet.commands.following import EXIT_CANCELLED, EXIT_SOME_FAILED, interruptible
from clipfleet.commands.options import JOB_OPTIONS, AsJson, Source, Wait, not_empty
from clipfleet.contract.jobs import DecodeRoute, Exif, JobState, Lane, Precision
from clipfleet.contract.stores import MAX_KEEP_GONE_DAYS
from clipfleet.errors import UsageError
from clipfleet.terminal.console import say, say_trouble, with_options
from clipfleet.terminal.help import MODEL, OUTPUT, ROWS, SCHEDULING
from clipfleet.terminal.interrupted import words_after_backfilling
from clipfleet.terminal.program import EXIT_FAILED
from clipfleet.terminal.progress import JobProgress, missing_worker_words
from clipfleet.terminal.up_around import afterwards
from clipfleet.wording import counted

if TYPE_CHECKING:
    from clipfleet.backfill.night import Backfill
    from clipfleet.backfill.outcome import BackfillResult
    from clipfleet.client import Client, JobHandle
    from clipfleet.store.comparing import Comparison

_NEVER, _ANY = "never", "any"
_SAY_SECONDS = 10.0  # between lines about a long listing
_PRINTED = (
    "store",
    "version",
    "new",
    "changed",
    "same",
    "gone",
    "failed",
    "copied",
    "fetched_bytes",
    "seconds",
)


def _shared(name: str, words: str) -> Any:
    """An option of jobs, whose default is that of the store."""
    option = copy(JOB_OPTIONS[name])
    option.help = f"{option.help} (default: {words})"
    return option


_OF_THE_STORE = "that of the store"
_Store = Annotated[
    str,
    typer.Option(
        metavar="STORE",
        callback=not_empty,
        help="the folder or s3://BUCKET/PREFIX of the store; it is made if it is not there",
        rich_help_panel=OUTPUT,
    ),
]
_FailOn = Annotated[
    str,
    typer.Option(
        metavar="never|any|RATE",
        help="exit with code 3 if items failed, or were late: never, if any did, or if more than this share "
        "of those that ran did (0.01 = 1 %)",
        rich_help_panel=ROWS,
    ),
]
_MaxItems = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="run at most N items, and leave others for another night",
        rich_help_panel=ROWS,
    ),
]  # fmt: skip
_KeepGone = Annotated[
    int,
    typer.Option(
        "--keep-gone",
        metavar="DAYS",
        min=0,
        max=MAX_KEEP_GONE_DAYS,
        help="keep the rows of items that the source has no more for so many days, marked by gone_at",
        rich_help_panel=ROWS,
    ),
]
_DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="compare, print what would run, and change nothing", rich_help_panel=SCHEDULING
    ),
]


_MaybeSource = Annotated[str | None, get_args(Source)[1]]
_Migrate = Annotated[
    bool,
    typer.Option(
        "--migrate",
        help="make the vectors of another --model (--precision, --decode, --exif) beside those of the store, "
        "then switch to them; run it again to continue",
        rich_help_panel=MODEL,
    ),
]
_AbandonMigration = Annotated[
    bool,
    typer.Option("--abandon-migration", help="end a migration without a switch", rich_help_panel=MODEL),
]


def backfill(
    source: _MaybeSource = None,
    *,
    store: _Store,
    model: Annotated[str | None, _shared("model", _OF_THE_STORE)] = None,
    precision: Annotated[Precision | None, _shared("precision", _OF_THE_STORE)] = None,
    decode: Annotated[DecodeRoute | None, _shared("decode", _OF_THE_STORE)] = None,
    exif: Annotated[Exif | None, _shared("exif", _OF_THE_STORE)] = None,
    lane: Annotated[Lane | None, _shared("lane", "normal")] = None,
    chunk_size: Annotated[int | None, JOB_OPTIONS["chunk_size"]] = None,
    job_id: Annotated[str | None, JOB_OPTIONS["job_id"]] = None,
    url_column: Annotated[str | None, JOB_OPTIONS["url_column"]] = None,
    id_column: Annotated[str | None, JOB_OPTIONS["id_column"]] = None,
    base_uri: Annotated[str | None, JOB_OPTIONS["base_uri"]] = None,
    max_items: _MaxItems = None,
    keep_gone: _KeepGone = 0,
    fail_on: _FailOn = _ANY,
    dry_run: _DryRun = False,
    migrate: _Migrate = False,
    abandon_migration: _AbandonMigration = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Embed what a source has new or changed since the last time, and keep the vectors in a store."""
    failing = _share(fail_on)
    options = BackfillOptions(
        model=model, precision=precision, decode=decode, exif=exif, lane=lane, chunk_size=chunk_size,
        job_id=job_id, url_column=url_column, id_column=id_column, base_uri=base_uri, max_items=max_items,
        keep_gone_days=keep_gone,
    )  # fmt: skip
    if abandon_migration:
        _abandon(store, as_json=as_json)
        return
    if source is None:
        raise UsageError("SOURCE is missing: give a folder, a list, a table, shards or s3://BUCKET/...")
    if migrate:
        _refuse_for_migrations(
            {"--no-wait": not wait, "--dry-run": dry_run, "--job-id": job_id, "--max-items": max_items}
        )
    listed = _Listed(quiet=as_json)
    with open_client() as client, _progress(client, quiet=as_json) as progress:
        watch: dict[str, Any] = {"on_progress": progress.update, "on_trouble": say_trouble}
        if migrate:
            migration = client.migrate(source, store, options=options, most_failed=failing, on_listed=listed)
            with progress:
                result = migration.run(**watch)
        else:
            night = client.backfill(source, store, options=options, on_listed=listed)
            if dry_run:
                _print_plan(night.plan(), night.store, as_json=as_json)
                return
            night.begin()
            if not wait and night.job is not None:
                _print_begun(client, night, night.job, as_json=as_json)
                return
            with progress:
                result = night.wait(**watch)
    _print_result(result, as_json=as_json, is_migration=migrate)
    raise typer.Exit(_exit_code(result, failing, is_migration=migrate))


@contextmanager
def _progress(client: Client, *, quiet: bool) -> Iterator[JobProgress]:
    """The progress of a night's jobs, of which the last one is named after a Ctrl-C."""
    progress = JobProgress(client.workers, quiet=quiet, fills_a_store=True)
    with interruptible(lambda: words_after_backfilling(progress.latest)):
        yield progress


def _refuse_for_migrations(given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if value:
            raise UsageError(f"{name} does not go with --migrate, which takes several jobs: leave it out")


def _abandon(store: str, *, as_json: bool) -> None:
    with open_client() as client:
        is_ended = client.abandon_migration(store)
    if as_json:
        from clipfleet.outputs import output_uri

        typer.echo(json.dumps({"store": output_uri(store), "abandoned": is_ended}))
    elif is_ended:
        say("the migration has ended; `clipfleet store vacuum` removes what it has made")
    else:
        say("there is no migration")


class _Listed:
    """Says now and then how far a long listing is."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._said = time.monotonic()

    def __call__(self, items: int) -> None:
        now = time.monotonic()
        if not self._quiet and now - self._said >= _SAY_SECONDS:
            self._said = now
            say(f"compared {counted(items, 'item')} so far")


def _share(text: str) -> float | None:
    """The share of failed items that is not exceeded without exit code 3; None: any share."""
    if text in (_NEVER, _ANY):
        return None if text == _NEVER else 0.0
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"--fail-on {text!r} is neither never, any nor a share from 0 to 1")
    return share


def _exit_code(result: BackfillResult, failing: float | None, *, is_migration: bool) -> int:
    if is_migration and result.is_complete:  # which judges by what would be lost
        return 0 if result.switched else EXIT_SOME_FAILED
    if not result.is_complete:
        return EXIT_CANCELLED if result.state is JobState.CANCELLED and not result.reason else EXIT_FAILED
    missing = result.failed + result.late
    return EXIT_SOME_FAILED if failing is not None and missing > failing * result.ran else 0


def _print_plan(found: Comparison, store: str, *, as_json: bool) -> None:
    to_run = found.to_run + found.left
    plan = {
        "store": store, "items": found.items, "new": found.new, "to_check": to_run - found.new,
        "same": found.same, "gone": len(found.gone), "left": found.left,
    }  # fmt: skip
    if as_json:
        typer.echo(json.dumps(plan))
        return
    left = f", {found.left:,} of them in another night" if found.left else ""
    say(
        f"would run {counted(to_run, 'item')} of {found.items:,}: {found.new:,} new, "
        f"{to_run - found.new:,} that may have changed{left}; {found.same:,} the same, "
        f"{len(found.gone):,} gone; nothing was changed"
    )


def _print_begun(client: Client, night: Backfill, job: JobHandle, *, as_json: bool) -> None:
    if as_json:
        begun = {"store": night.store, "job_id": job.job_id, "is_another": night.is_another}
        typer.echo(json.dumps(begun))
    else:
        watch = afterwards("clipfleet", "watch", job.job_id)
        earlier = "an earlier backfill is in progress, run this one after it: " if night.is_another else ""
        say(f"{earlier}follow job {job.job_id} with `{watch}`")
    problem = missing_worker_words(job.status(), client.workers(), fills_a_store=True)
    if problem:
        say(problem, style="yellow")


def _state_words(result: BackfillResult, *, is_migration: bool) -> str:
    if is_migration:
        return "has the new vectors now" if result.switched else "keeps its vectors for now"
    return f"has version {result.version}"


def _print_result(result: BackfillResult, *, as_json: bool, is_migration: bool) -> None:
    if as_json:
        values = asdict(result)
        printed = {name: values[name] for name in (*_PRINTED, *(["switched"] if is_migration else []))}
        printed["seconds"] = round(result.seconds, 3)
        typer.echo(
            json.dumps(
                printed
                | {"left": result.left, "late": result.late, "job_id": result.job_id, "state": result.state}
            )
        )
    elif result.is_complete:
        copied = f" ({result.copied:,} copied)" if result.copied else ""
        say(
            f"Done in {result.seconds:.1f} s: {result.new:,} new, {result.changed:,} changed{copied}, "
            f"{result.same:,} the same, {result.gone:,} gone, {result.failed:,} failed. "
            f"{result.store} {_state_words(result, is_migration=is_migration)}",
            style="yellow" if result.failed else "green",
        )
        if result.left:
            say(f"{counted(result.left, 'item')} above --max-items: run it again for them")
        if result.late and not is_migration:
            say(
                f"{counted(result.late, 'item')} of this night came late: other backfills have changed the "
                "store each time; run it again for them",
                style="yellow",
            )
    else:
        again = "deal with the reason, then run it again" if result.reason else "run it again"
        say(f"job {result.job_id} is {result.state}: nothing was committed; {again}", style="yellow")
    if result.reason:
        say(f"reason: {with_options(result.reason)}", style="red")
    if result.failed and result.is_complete and not as_json:
        say(f"failed items keep the vectors they had, and are tried again next time: {result.errors_file}")
