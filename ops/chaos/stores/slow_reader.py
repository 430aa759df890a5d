"""Exports a store as `clipfleet store export` does, but stands still before it reads the rows."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from clipfleet.contract.columns import VectorType
from clipfleet.exports.snapshot import export_snapshot
from clipfleet.store.place import store_place
from clipfleet.store.versions import current_dataset


def main(store: str, folder: str, seconds: str) -> None:
    """Write a snapshot of the version that is the newest one now."""
    found, dataset = current_dataset(store_place(store))
    time.sleep(float(seconds))
    facts = {"fingerprint": found.current.fingerprint or ""}
    rows = export_snapshot(dataset, Path(folder), VectorType.FLOAT16, facts)
    print(json.dumps({"version": dataset.version, "rows": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
