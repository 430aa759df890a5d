"""What a commit does with each item of a night, whatever others have committed meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.contract.parts import part_schema
from clipfleet.errors import OutputConflictError
from clipfleet.store.committing.commit import Counts, commit_night
from clipfleet.store.committing.matching import IdSet
from clipfleet.store.committing.night import Night
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.rows import PRESENT
from tests.support.store_rows import DIMENSION, LISTED_AT, item, make_dataset, stored_rows

TONIGHT = LISTED_AT + timedelta(days=1)
OWN = {"shelf": pa.int64()}


def row(item_id: str, status: str = "ok", **values: Any) -> dict[str, Any]:
    """A row of a part of tonight's job."""
    found: dict[str, Any] = {
        "item_index": 0, "item_id": item_id, "uri": f"s3://bucket/{item_id}", "status": status,
        "content_hash": f"hash of {item_id}", "_version": "6 v2", "_digest": 99, "width": 8, "height": 9,
        "embedding": [9.0, 9.0, 9.0, 9.0] if status == "ok" else None, "_is_copied": False,
        "error_code": "timeout" if status == "failed" else None,
    }  # fmt: skip
    return found | values


def night(
    rows: Sequence[Mapping[str, Any]] = (),
    gone: Sequence[Mapping[str, Any]] = (),
    own: Mapping[str, pa.DataType] | None = None,
    **values: Any,
) -> Night:
    schema = part_schema(DIMENSION, [pa.field(*one) for one in (own or {}).items()], fills_a_store=True)
    parts = [pa.RecordBatch.from_pylist([*rows[at : at + 2]], schema) for at in range(0, len(rows), 2)]
    leaving = pa.schema([("item_id", pa.string()), ("digest", pa.int64())])
    gone_batches = [pa.RecordBatch.from_pylist([*gone], leaving)] if gone else []
    options: dict[str, Any] = {"listed_at": TONIGHT, "embedded_at": TONIGHT} | values
    return Night(lambda: parts, lambda: gone_batches, **options)


def commit(dataset: VectorDataset, one: Night, job: str = "tonight") -> tuple[VectorDataset, Counts]:
    done = commit_night(dataset, one, {"job_id": job, "generation": "0"}, since=dataset.version)
    return done.dataset, done.counts


def rows_of(dataset: VectorDataset, where: str | None = None) -> dict[str, dict[str, Any]]:
    found = [one for batch in dataset.batches(dataset.schema.names, where=where) for one in batch.to_pylist()]
    by_id = {one["item_id"]: one for one in found}
    assert len(by_id) == len(found), "an id is doubled"
    return by_id


def digest_of(dataset: VectorDataset, item_id: str) -> int:
    return int(rows_of(dataset)[item_id]["digest"])


@pytest.fixture
def stored(tmp_path: Path) -> VectorDataset:
    """`a` to `e`, as of the night before."""
    return make_dataset(tmp_path / "x.lance", [item(name) for name in "abcde"])


def test_a_night_in_one_version(stored: VectorDataset) -> None:
    gone = [{"item_id": "e", "digest": digest_of(stored, "e")}]
    rows = [
        row("b"),
        row("f"),
        row("c", "failed"),
        row("g", "failed"),
        row("d", "same"),
        row("h", _is_copied=True),
    ]

    after, counts = commit(stored, night(rows, gone))

    assert counts == Counts(new=2, changed=1, copied=1, same=1, failed=2, gone=1)
    found = rows_of(after)
    assert sorted(found) == [*"abcdfh"]
    assert found["a"] == rows_of(stored)["a"]
    assert found["c"] == rows_of(stored)["c"], "a failed item keeps its old vector"
    assert (found["b"]["embedding"], found["b"]["version"], found["b"]["digest"]) == ([9.0] * 4, "6 v2", 99)
    assert (found["b"]["listed_at"], found["b"]["embedded_at"]) == (TONIGHT, TONIGHT)
    assert after.version == stored.version + 1


def test_images_that_another_night_has_embedded_meanwhile_are_the_same(stored: VectorDataset) -> None:
    others = [row("b", content_hash="new"), row("f"), row("g")]
    commit(stored, night(others, listed_at=TONIGHT - timedelta(seconds=1)), "another")
    mine = [row("b", content_hash="new"), row("f", _is_copied=True), row("g", content_hash="newer"), row("h")]

    after, counts = commit(stored, night(mine))

    assert counts == Counts(new=1, changed=1, same=2)
    assert {
        name: one["listed_at"] for name, one in rows_of(after).items() if name in "bfgh"
    } == dict.fromkeys("bfgh", TONIGHT)


def test_the_same_image_keeps_its_vector_and_gets_its_new_facts(stored: VectorDataset) -> None:
    after, _ = commit(stored, night([row("d", "same", uri="s3://moved/d", _etag='"7"')]))

    was, now = rows_of(stored)["d"], rows_of(after)["d"]
    assert (now["embedding"], now["embedded_at"]) == (was["embedding"], was["embedded_at"])
    assert (now["uri"], now["version"], now["etag"], now["digest"]) == ("s3://moved/d", "6 v2", '"7"', 99)
    assert now["listed_at"] == TONIGHT
    assert (now["width"], now["content_hash"]) == (was["width"], was["content_hash"])


def test_an_item_without_a_version_that_is_the_same_costs_no_write(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "u.lance", [item("a", None)], etag='"1"', size_bytes=50)
    digest = digest_of(dataset, "a")
    same = row("a", "same", _version=None, _etag='"1"', _digest=digest)

    after, counts = commit(dataset, night([same]))
    assert (counts.same, after.version) == (1, dataset.version)

    after, _ = commit(dataset, night([same | {"_etag": '"2"'}]))
    now = rows_of(after)["a"]
    assert (now["etag"], now["size_bytes"], after.version) == ('"2"', 50, dataset.version + 1)


def test_one_that_is_the_same_as_what_is_no_longer_there_renews_nothing(stored: VectorDataset) -> None:
    """Another night has committed another image: it must not get the facts of the one that was judged."""
    other, _ = commit(stored, night([row("d", content_hash="another", _digest=7)]), "other")

    after, counts = commit(other, night([row("d", "same")]))

    assert (counts.same, counts.late) == (0, 1)
    assert rows_of(after)["d"] == rows_of(other)["d"]


def test_what_a_later_listing_has_committed_stays(stored: VectorDataset) -> None:
    later = night([row("b", content_hash="later")], listed_at=TONIGHT + timedelta(hours=1))
    other, _ = commit(stored, later, "later")
    gone = [{"item_id": "b", "digest": digest_of(stored, "b")}]

    for one in (night([row("b"), row("f")]), night([row("b", "same")]), night(gone=gone)):
        after, _ = commit(other, one, f"{id(one)}")
        assert rows_of(after)["b"] == rows_of(other)["b"]


def test_an_item_that_has_changed_since_it_was_found_gone_stays(stored: VectorDataset) -> None:
    gone = [{"item_id": "b", "digest": digest_of(stored, "b")}]
    other, _ = commit(stored, night([row("b")]), "other")

    after, counts = commit(other, night(gone=gone))

    assert (counts.gone, "b" in rows_of(after)) == (0, True)


def test_a_commit_is_made_once(stored: VectorDataset) -> None:
    one = night([row("b"), row("f")])

    first = commit_night(stored, one, {"job_id": "x"}, since=stored.version)
    commit(first.dataset, night([row("f", content_hash="newer")], listed_at=TONIGHT + timedelta(days=1)))
    again = commit_night(stored, one, {"job_id": "x"}, since=stored.version)

    assert again.counts == first.counts
    assert rows_of(again.dataset)["f"]["content_hash"] == "newer"


def test_a_faster_program_makes_it_begin_again(
    stored: VectorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = VectorDataset.replace
    overtaken: list[datetime] = []

    def replace(self: VectorDataset, *args: Any, **kwargs: Any) -> VectorDataset:
        if not overtaken:
            overtaken.append(TONIGHT)
            commit(stored, night([row("z")], listed_at=LISTED_AT), "faster")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(VectorDataset, "replace", replace)

    after, _ = commit(stored, night([row("b")]))

    assert sorted(rows_of(after)) == [*"abcdez"]
    assert rows_of(after)["b"]["version"] == "6 v2"


def test_what_is_gone_may_stay_for_days(stored: VectorDataset) -> None:
    gone = [{"item_id": name, "digest": digest_of(stored, name)} for name in "de"]

    kept, counts = commit(stored, night(gone=gone, keep_gone_days=2))
    assert counts.gone == 2
    assert sorted(rows_of(kept, PRESENT)) == [*"abc"]
    assert rows_of(kept)["e"]["gone_at"] == TONIGHT

    back = night([row("d", "same")], listed_at=TONIGHT + timedelta(days=1), keep_gone_days=2)
    kept, _ = commit(kept, back, "back")
    assert (rows_of(kept)["d"]["gone_at"], rows_of(kept)["e"]["gone_at"]) == (None, TONIGHT)

    for_ever = night(gone=gone, listed_at=TONIGHT + timedelta(days=2, seconds=1), keep_gone_days=10**11)
    kept, counts = commit(kept, for_ever, "for ever")
    assert (counts.expired, sorted(rows_of(kept))) == (0, [*"abcde"])

    last = night([row("f")], listed_at=TONIGHT + timedelta(days=2, seconds=1), keep_gone_days=2)
    kept, counts = commit(kept, last, "last")
    assert (counts.expired, sorted(rows_of(kept))) == (1, [*"abcdf"])


def test_new_columns_of_the_source_are_added_and_old_rows_have_none(stored: VectorDataset) -> None:
    after, _ = commit(stored, night([row("b", shelf=3)], own=OWN))

    assert {name: one["shelf"] for name, one in rows_of(after).items()} == {
        "a": None, "b": 3, "c": None, "d": None, "e": None,
    }  # fmt: skip


@pytest.mark.parametrize("shelf", ["upper", "3", None])
def test_a_column_that_another_night_has_stored_with_another_type_ends_the_job(
    stored: VectorDataset, shelf: str | None
) -> None:
    """Both were compared before either was committed: the store had no such column yet."""
    other, _ = commit(stored, night([row("b", shelf=3)], own=OWN), "other")

    with pytest.raises(
        OutputConflictError, match=r"'shelf' is string, .* as int64 meanwhile.*run the backfill again"
    ):
        commit(stored, night([row("c", shelf=shelf)], own={"shelf": pa.string(), "note": pa.string()}))

    assert stored.latest().version == other.version


def test_a_column_of_the_source_that_changes_alone_is_renewed(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "u.lance", [item("a", shelf=1)])

    after, _ = commit(dataset, night([row("a", "same", _version=None, shelf=2)], own=OWN))

    assert rows_of(after)["a"]["shelf"] == 2


def test_a_first_night(tmp_path: Path) -> None:
    empty = VectorDataset.create(str(tmp_path / "n.lance"), stored_rows([item("a")]).schema)

    after, counts = commit(empty, night([row(f"{number}") for number in range(7)]))

    assert (counts, len(rows_of(after))) == (Counts(new=7), 7)


def test_ids_whose_hashes_clash_in_half_are_kept_apart() -> None:
    given = np.array([[5, 1], [7, 1], [5, 2], [3, 3]], np.uint64)

    ids = IdSet([given[:3], given[3:]])

    assert ids.places(given).tolist() == [0, 1, 2, 3]
    assert ids.places(np.array([[5, 3], [7, 2], [9, 9]], np.uint64)).tolist() == [-1, -1, -1]
    assert IdSet([]).places(given).tolist() == [-1] * 4
