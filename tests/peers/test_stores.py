"""Other programs read a store's current vectors, and snapshots of them: each item once, vectors unchanged."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.contract.columns import VectorType
from clipfleet.exports.snapshot import export_snapshot
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.indexing import build_index
from clipfleet.store.place import EmbeddedBy, StorePlace, store_place
from tests.peers.read_store import PEERS
from tests.support.documents import ROOT, table
from tests.support.store_rows import LISTED_AT, NO_ADDRESSES, item, stored_rows

pytestmark = pytest.mark.peers

FINGERPRINT = "a" * 16
ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Store:
    """A store, and the vectors of the items that its source has."""

    place: StorePlace
    dataset: VectorDataset
    vectors: Mapping[str, list[float]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """After nights with new, changed, deleted and gone items, a new column and an index."""
    place = store_place(str(tmp_path_factory.mktemp("peers") / "store"))
    place.create(EmbeddedBy(model="demo", fingerprint=FINGERPRINT, dimension=4))
    first = rows(range(600), seed=0)
    dataset = VectorDataset.create(place.dataset_uri(FINGERPRINT), first.schema)
    dataset = dataset.replace(NO_ADDRESSES, first.to_batches(), {})
    dataset = build_index(dataset).with_columns([pa.field("shelf", pa.string())], {})
    every = np.concatenate([one["_rowaddr"].to_numpy() for one in dataset.batches([], with_address=True)])
    changed, gone = rows(range(50, 80), seed=1), rows(range(20, 30), seed=2, gone_at=LISTED_AT)
    fresh = pa.concat_tables([changed, gone])
    fresh = fresh.append_column("shelf", pa.array(["new"] * len(fresh)))
    dataset = dataset.replace(every[20:80], fresh.to_batches(), {})
    current = {**vectors_of(first), **vectors_of(changed)}
    return Store(place, dataset, {name: one for name, one in current.items() if not 20 <= int(name) < 50})


def rows(numbers: range, *, seed: int, **values: object) -> pa.Table:
    """Rows with vectors of length one in random directions."""
    found = stored_rows([item(str(number)) for number in numbers], **values)
    vectors = np.random.default_rng(seed).standard_normal((len(numbers), 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    place = found.schema.get_field_index("embedding")
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), 4)
    return found.set_column(place, found.schema.field(place), flat)


def vectors_of(table: pa.Table) -> dict[str, list[float]]:
    vectors = [[*map(float, one)] for one in table["embedding"].to_pylist()]
    return dict(zip(table["item_id"].to_pylist(), vectors, strict=True))


def read_by(python: Path, script: str, folder: Path, *words: str) -> Mapping[str, list[float]]:
    shown = subprocess.run(
        [python, Path(__file__).with_name(script), *words],
        env=os.environ | ENVIRONMENT | {"HF_HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    found: Mapping[str, list[float]] = json.loads(shown.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("peer", PEERS)
def test_the_current_version_of_a_store_is_read(
    python_of: Callable[[str], Path], store: Store, tmp_path: Path, peer: str
) -> None:
    python = python_of("READERS_PYTHON")

    assert read_by(python, "read_store.py", tmp_path, peer, store.place.uri, FINGERPRINT) == store.vectors


@pytest.mark.parametrize("vector_type", VectorType)
def test_embedding_reader_reads_a_snapshot(
    python_of: Callable[[str], Path], store: Store, tmp_path: Path, vector_type: VectorType
) -> None:
    folder = tmp_path / "snapshot"
    assert export_snapshot(store.dataset, folder, vector_type, {}) == len(store.vectors)

    found = read_by(python_of("PEERS_PYTHON"), "read_snapshot.py", tmp_path, str(folder))

    assert found == store.vectors


def test_the_page_shows_what_is_run_here() -> None:
    run = Path(__file__).with_name("read_store.py").read_text()
    shown = table(ROOT / "docs" / "store.md", "program", "current rows of `STORE`")

    assert [program for program, _ in shown] == [*PEERS]
    for program, code in shown:
        for call in re.findall(r"\.(\w+)\(", code):
            assert f".{call}(" in run, program
