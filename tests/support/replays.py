"""Policies and stored vectors for replays, on the demo model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet.contract.heads import HeadInput, HeadKind
from clipfleet.contract.jobs import Precision
from clipfleet.heads.files import write_head
from clipfleet.moderation.policy_files import read_policy_file
from clipfleet.outputs.folder import FolderOutput
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import EmbeddedBy, store_place
from clipfleet.store.rows import store_schema
from tests.support.heads import head_file
from tests.support.judged import decided, scores_of, text_vectors, too_close
from tests.support.store_rows import LISTED_AT, NO_ADDRESSES
from tests.support.stored_vectors import PART_ROWS, place_vectors, vector_rows

DIMENSION = 128  # of the demo model
# Of a score: workers normalise vectors in float32, and round margins so that a batch changes none.
ROUNDING = 3e-6
MOST_UNSURE = 2e-4  # share of the items
LABELS = ("dog", "cat", "pie", "stadium", "cigarette")
OLD = """\
name: uploads
version: "1"
model: demo
label_sets:
  things:
    kind: multi
    labels: [{name: dog, threshold: 0.6}, cat, {name: pie, not: a cake}, cigarette]
  places: {none: true, labels: [stadium, {name: house, threshold: 0.3}]}
heads: [spam.head.safetensors]
rules:
  - name: sketches
    when: [{label: cigarette, at_least: 0.7}, {label: stadium, below: 0.2}]
    action: allow
  - name: smoking
    when: {label: cigarette}
    action: flag
  - when: [{label: dog}, {head: spam, label: kind 1}]
    action: flag
  - when: {label: pie, at_least: 0.4}
    action: review
  - when: {head: spam, label: kind 0, below: 0.2}
    action: review
"""
# Other thresholds, rules and otherwise; no other score.
OTHER = (
    OLD.replace("threshold: 0.6", "threshold: 0.45")
    .replace('version: "1"', 'version: "2"')
    .replace("at_least: 0.7", "at_least: 0.55")
    .replace("at_least: 0.4", "at_least: 0.6")
    .replace("    action: allow\n", "    action: allow\n  - {when: {label: house}, action: review}\n")
)
# Other prompts.
REWORDED = OTHER.replace("cat, {name: pie", "cat, kitten, {name: pie").replace("a cake", "a round object")


def write_policies(folder: Path, model: str = "demo", dimension: int = DIMENSION) -> tuple[Path, Path, Path]:
    """The files of `OLD`, `OTHER` and `REWORDED`, and of their head."""
    thresholds, takes = {"kind 0": 0.5, "kind 1": 0.4}, HeadInput(dim=dimension, model=model)
    head = head_file(dimension, 2, kind=HeadKind.MULTILABEL, name="spam", thresholds=thresholds, input=takes)
    write_head(head, folder / "spam.head.safetensors")
    found = []
    for name, text in (("old", OLD), ("other", OTHER), ("reworded", REWORDED)):
        (folder / f"{name}.yaml").write_text(text.replace("model: demo", f"model: {model}"))
        found.append(folder / f"{name}.yaml")
    return found[0], found[1], found[2]


def mixed_vectors(count: int, seed: int = 0) -> np.ndarray:
    """Vectors between those of the labels and of anything else, so that scores are anywhere; float16."""
    random = np.random.default_rng(seed)
    texts = text_vectors([f"a photo of a {label}" for label in LABELS])
    shares = random.uniform(0, 1.2, (count, 1)) * texts[random.integers(0, len(texts), count)]
    noise = random.standard_normal((count, DIMENSION))
    mixed = shares + text_vectors(["a photo"]) / 2 + noise / np.linalg.norm(noise, axis=1, keepdims=True)
    vectors: np.ndarray = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float16)
    return vectors


def place_output(
    folder: Path,
    vectors: np.ndarray,
    fingerprint: str,
    failed: Collection[int] = (),
    *,
    model: str = "demo",
    precision: Precision = Precision.FP32,
) -> None:
    """A finished embed job with these vectors."""
    rows = _rows(vectors, fingerprint, failed)
    place_vectors(FolderOutput(folder), rows, model=model, precision=precision)


def place_store(folder: Path, vectors: np.ndarray, fingerprint: str, gone: Collection[int] = ()) -> None:
    """A store with these vectors, of items some of which are gone."""
    place, schema = store_place(str(folder)), store_schema(DIMENSION)
    made_by = EmbeddedBy(model="demo", precision=Precision.FP32, fingerprint=fingerprint, dimension=DIMENSION)
    place.create(made_by)

    def stored() -> Iterator[pa.RecordBatch]:
        for rows in _rows(vectors, fingerprint):
            columns = {name: rows[name].combine_chunks() for name in rows.column_names}
            indexes = rows["item_index"].to_pylist()
            columns["digest"] = pa.array(indexes, pa.int64())
            columns["listed_at"] = pa.array([LISTED_AT] * len(indexes), schema.field("listed_at").type)
            gone_at = [LISTED_AT if index in gone else None for index in indexes]
            columns["gone_at"] = pa.array(gone_at, schema.field("gone_at").type)
            found = [columns.get(field.name, pa.nulls(len(indexes), field.type)) for field in schema]
            yield pa.RecordBatch.from_arrays(found, schema=schema)

    VectorDataset.create(place.dataset_uri(fingerprint), schema).replace(NO_ADDRESSES, stored(), {})


def _rows(vectors: np.ndarray, fingerprint: str, failed: Collection[int] = ()) -> Iterator[pa.Table]:
    for first in range(0, len(vectors), PART_ROWS):
        yield vector_rows(first, vectors[first : first + PART_ROWS], fingerprint, failed=failed)


Changes = list[tuple[int, str, str]]  # index and both decisions of the items that change side


def require_judged_changes(
    changes: Path, vectors: np.ndarray, old: Path, new: Path, failed: Sequence[int] = ()
) -> Changes:
    """Compare a file of changes with an independent computation; return the changes.

    The few items with a score that rounding may move over a threshold are left out.
    """
    sides, unsure = [], set[int]()
    for path in (old, new):
        chosen = read_policy_file(path)
        scores = scores_of(chosen, vectors)
        unsure |= too_close(chosen, scores, ROUNDING)
        sides.append(decided(chosen, scores, failed))
    assert len(unsure) <= MOST_UNSURE * len(vectors)
    listed = listed_changes(changes)
    assert [one for one in listed if one[0] not in unsure] == [
        one for one in changes_between(*sides) if one[0] not in unsure
    ]
    return listed


def changes_between(old: Sequence[str], new: Sequence[str]) -> Changes:
    """The changes between the decisions on all items."""
    pairs = enumerate(zip(old, new, strict=True))
    return [(item, before, after) for item, (before, after) in pairs if before != after]


def listed_changes(file: Path) -> Changes:
    """Those of a file in Parquet."""
    rows = pq.read_table(file, columns=["item_index", "old", "new"]).to_pylist()
    return [(row["item_index"], row["old"], row["new"]) for row in rows]
