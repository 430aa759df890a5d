"""Commands that say what a store is: `store info` and `store log`."""

from __future__ import annotations

import json
from contextlib import closing, nullcontext

import typer

from clipfleet.commands.options import AsJson
from clipfleet.commands.stores.arguments import Store
from clipfleet.settings import Settings, checked
from clipfleet.terminal.console import print_table, printable

# The readers of stores import pyarrow and Lance, `--help` must not: their imports are in the functions.


def info(store: Store, as_json: AsJson = False) -> None:
    """Show what a store holds and which jobs run: model, rows, versions, size, index."""
    from clipfleet.store.extra import require_store

    require_store()
    from clipfleet.ledger.jobs import Ledger
    from clipfleet.store.facts import info_document, info_lines, store_facts
    from clipfleet.store.place import store_place

    settings = checked(Settings)
    ledger = None if settings.redis_url is None else Ledger(settings.require_redis_url())
    with closing(ledger) if ledger else nullcontext():
        facts = store_facts(store_place(store), ledger)
    if as_json:
        typer.echo(json.dumps(info_document(facts)))
        return
    for line in info_lines(facts):
        typer.echo(printable(line))


def log(store: Store, as_json: AsJson = False) -> None:
    """List the versions of a store, newest first: when, by which job, what changed."""
    from clipfleet.store.extra import require_store

    require_store()
    from clipfleet.store.facts import version_object, version_table
    from clipfleet.store.place import store_place
    from clipfleet.store.versions import current_dataset

    place = store_place(store)
    _, dataset = current_dataset(place)
    versions = [*dataset.versions()][::-1]
    if as_json:
        typer.echo(json.dumps({"store": place.uri, "versions": [version_object(one) for one in versions]}))
        return
    print_table(version_table(versions))
