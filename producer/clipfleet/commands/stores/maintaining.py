"""Commands that remove from a store what it no longer needs: `store compact`, `vacuum` and `forget`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands.options import AsJson
from clipfleet.commands.stores.arguments import Store
from clipfleet.errors import UsageError
from clipfleet.settings import Settings, checked
from clipfleet.terminal.console import say, say_trouble
from clipfleet.terminal.help import ROWS
from clipfleet.wording import counted, size_words

if TYPE_CHECKING:
    from clipfleet.store.maintenance.holding import HeldStore

_UNITS = {"d": "days", "h": "hours", "m": "minutes"}
_LEAST_KEPT = timedelta(hours=1)
_NAMED = 5


@contextmanager
def _held(store: str) -> Iterator[HeldStore]:
    from clipfleet.store.extra import require_store

    require_store()
    from clipfleet.store.maintenance.holding import held_store
    from clipfleet.store.place import store_place

    place, redis_url = store_place(store), checked(Settings).require_redis_url()
    with held_store(place, redis_url, say_trouble) as held:
        yield held


def compact(store: Store, as_json: AsJson = False) -> None:
    """Put the small files of a store together, and leave out deleted rows; reads get faster."""
    with _held(store) as held:
        from clipfleet.store.maintenance.compacting import compact

        found = compact(held)
    if as_json:
        about = [
            {"fingerprint": one.fingerprint, "version": one.version, "files_before": one.files_before,
             "files": one.files}
            for one in found
        ]  # fmt: skip
        typer.echo(json.dumps({"store": held.place.uri, "datasets": about}))
        return
    if not found:
        say(f"{held.place.uri} has no vectors yet: there is nothing to compact")
    for one in found:
        say(f"{one.fingerprint}: {one.files_before} -> {counted(one.files, 'file')}, version {one.version}")


def vacuum(
    store: Store,
    keep: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="time since the next version that keeps one: 7d, 12h or 90m; at least an hour",
            rich_help_panel=ROWS,
        ),
    ] = "7d",
    as_json: AsJson = False,
) -> None:
    """Remove old versions, earlier models and leftovers that no job needs."""
    kept = _duration(keep)
    with _held(store) as held:
        from clipfleet.store.maintenance.vacuum import vacuum

        found = vacuum(held, kept)
    if as_json:
        about = {"versions": found.versions, "models": found.models, "jobs": found.jobs}
        typer.echo(json.dumps({"store": held.place.uri, **about, "freed_bytes": found.freed_bytes}))
        return
    removed = [counted(found.versions, "version")] if found.versions else []
    removed += [f"the vectors of {fingerprint}" for fingerprint in found.models]
    removed += [f"outputs of {counted(len(found.jobs), 'job')}"] if found.jobs else []
    if removed or found.freed_bytes:
        what = ", ".join(removed) or "files of killed programs"
        say(f"removed {what}: {size_words(found.freed_bytes)}")
    else:
        say(f"{held.place.uri}: there is nothing to remove")


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,5})([dhm])", text, re.ASCII)
    if found is None:
        raise UsageError(f"--keep {text!r}: write days, hours or minutes, such as 7d, 12h or 90m")
    keep = timedelta(**{_UNITS[found[2]]: int(found[1])})
    if keep < _LEAST_KEPT:
        raise UsageError(
            f"--keep {text}: at least 1h: what is younger may be in the hands of a program that is writing it"
        )
    return keep


def forget(
    store: Store,
    item_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="ids of items", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="a file with one id per line; - reads stdin", rich_help_panel=ROWS),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Erase items from all versions of a store, ids and vectors."""
    ids = [*(item_ids or ()), *_ids_of(file)]
    if not all(one.strip() for one in ids):
        raise UsageError("an ID is empty: no item has it")
    if not ids:
        raise UsageError("name the items: their ids, or --file FILE with one id per line")
    with _held(store) as held:
        from clipfleet.store.maintenance.forgetting import forget

        found = forget(held, ids)
    missing = sorted({*ids} - found.item_ids)
    if as_json:
        about = {
            "forgotten": sorted(found.item_ids), "missing": missing, "copies": sorted(found.copies),
            "versions": found.versions, "indexes": found.indexes, "jobs": found.jobs,
        }  # fmt: skip
        typer.echo(json.dumps({"store": held.place.uri, **about}))
        return
    if found.item_ids:
        versions = counted(found.versions, "earlier version")
        say(f"erased {counted(len(found.item_ids), 'item')}, and {versions} that held them")
    else:
        say("nothing was erased")
    if missing:
        say(f"not in the store: {_named(missing)}", style="yellow")
    if found.copies:
        say(f"the same images stay under other ids: {_named(sorted(found.copies))}", style="yellow")
    if found.indexes:
        say(f"the index held vectors of them: build it anew with `clipfleet store index {store}`")
    if found.item_ids:
        say(
            "the next backfill embeds what its source still has: remove the items there, too. A bucket with "
            "versioning keeps removed objects"
        )


def _ids_of(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    return [line for line in text.splitlines() if line.strip()]


def _named(ids: Sequence[str]) -> str:
    more = len(ids) - _NAMED
    return ", ".join(ids[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
