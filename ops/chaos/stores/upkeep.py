"""Keeps a store small as of a clock that is behind: what was replaced a short while ago is old for it.

No vacuum removes what is younger than an hour, and no run takes one. All that is younger than `SECONDS` is
spared, as `clipfleet store vacuum --keep 1h` spares an hour.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta

from clipfleet.settings import Settings
from clipfleet.store.maintenance.compacting import compact
from clipfleet.store.maintenance.holding import held_store
from clipfleet.store.maintenance.vacuum import SPARED, vacuum
from clipfleet.store.place import store_place

SECONDS = 20.0  # longer than a program reads


def main(store: str) -> None:
    """Compact a store, then remove what is old; says how many versions and datasets that was."""
    with held_store(store_place(store), Settings().require_redis_url(), lambda _: None) as held:
        compact(held)
        done = vacuum(held, SPARED, datetime.now(UTC) - timedelta(seconds=SECONDS) + SPARED)
    print(json.dumps({"versions": done.versions, "models": len(done.models)}))


if __name__ == "__main__":
    main(sys.argv[1])
