"""The command `store index`."""

from __future__ import annotations

import json
import time

import typer

from clipfleet.commands.options import AsJson
from clipfleet.commands.stores.arguments import Store
from clipfleet.settings import Settings, checked
from clipfleet.terminal.console import say, say_trouble
from clipfleet.terminal.progress import duration_words
from clipfleet.wording import counted


def index(store: Store, as_json: AsJson = False) -> None:
    """Build an index for faster searches, and print its recall against exact search."""
    from clipfleet.store.extra import require_store

    require_store()
    from clipfleet.store.indexing import NEIGHBOURS, build_index, measured_recall
    from clipfleet.store.maintenance.holding import held_store
    from clipfleet.store.place import store_place
    from clipfleet.store.versions import current_dataset

    place, redis_url = store_place(store), checked(Settings).require_redis_url()
    started = time.monotonic()
    with held_store(place, redis_url, say_trouble) as held:
        _, dataset = current_dataset(place)
        made = build_index(dataset, held.alive)
    seconds = time.monotonic() - started
    recall, facts = measured_recall(made), made.index_facts()
    assert facts is not None  # noqa: S101 - it was built
    if as_json:
        about = {
            "store": place.uri,
            "version": made.version,
            "kind": facts.kind,
            "rows": facts.rows,
            "bytes": facts.stored_bytes,
            "queries": recall.queries if recall else 0,
            f"recall_at_{NEIGHBOURS}": recall.share if recall else None,
            "seconds": round(seconds, 3),
        }
        typer.echo(json.dumps(about))
        return
    say(f"{facts.kind} over {counted(facts.rows, 'row')}, built in {duration_words(seconds)}")
    if recall is None:
        say("recall: not measured, there are too few rows")
    else:
        queries = counted(recall.queries, "sampled row")
        typer.echo(f"recall@{NEIGHBOURS} {recall.share:.3f} against exact search, {queries}")
