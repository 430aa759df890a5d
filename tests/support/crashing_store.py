"""Work on a store that dies: `python -m tests.support.crashing_store STORE ACTION CALL WHEN`.

It is killed before, or after, a call that changes files. Without a lock: no Redis is needed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import lance
from lance.optimize import Compaction

from clipfleet.store.maintenance import vacuum as vacuuming
from clipfleet.store.maintenance.compacting import compact
from clipfleet.store.maintenance.forgetting import forget
from clipfleet.store.maintenance.vacuum import vacuum
from clipfleet.store.place import store_place
from tests.support.held_stores import current, held
from tests.support.store_rows import NO_ADDRESSES, item, stored_rows

IN_A_MONTH = datetime.now(UTC) + timedelta(days=30)
CALLS: dict[str, tuple[Any, str]] = {
    "commit": (lance.LanceDataset, "commit"),
    "compaction": (Compaction, "commit"),
    "cleanup": (lance.LanceDataset, "cleanup_old_versions"),
    "removal": (vacuuming, "remove_folder"),
}
ACTIONS: dict[str, Callable[[Any], object]] = {
    "replace": lambda store: current(store.place).replace(
        NO_ADDRESSES, stored_rows([item("z")]).to_batches(), {}
    ),
    "compact": compact,
    "vacuum": lambda store: vacuum(store, timedelta(days=7), IN_A_MONTH),
    "forget": lambda store: forget(store, ["c"]),
}


def dies_at(call: str, is_after: bool) -> None:
    """Let this process die at the first call of this kind."""
    owner, name = CALLS[call]
    does = getattr(owner, name)

    def dying(*arguments: Any, **options: Any) -> None:
        if is_after:
            does(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)


if __name__ == "__main__":
    uri, action, call, when = sys.argv[1:]
    dies_at(call, when == "after")
    ACTIONS[action](held(store_place(uri)))
