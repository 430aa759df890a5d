"""What a source asks of a store: new, changed, to be asked, the same, gone; and what it must not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipfleet.errors import SourceError
from clipfleet.sources import ReadOptions, source_of
from clipfleet.store import comparing
from clipfleet.store.comparing import Comparing, Comparison
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.known import known_items
from tests.support.store_rows import LISTED_AT, ListedItems, item, make_dataset

Items = Sequence[Mapping[str, Any]]


@dataclass
class Compared:
    comparison: Comparison
    to_run: list[dict[str, Any]]
    gone: list[str]

    @property
    def ids(self) -> list[str]:
        return [one["item_id"] for one in self.to_run]


@pytest.fixture
def compare(tmp_path: Path) -> Any:
    def run(source: Any, dataset: VectorDataset | None = None, **options: Any) -> Compared:
        path = tmp_path / "items.parquet"
        path.unlink(missing_ok=True)
        one = Comparing(dataset, known_items(dataset), **({"began_at": LISTED_AT} | options))
        found = one.run(ListedItems(source) if isinstance(source, list) else source, path)
        rows = pq.read_table(path).to_pylist() if path.exists() else []
        gone = [name for batch in one.gone_items(found) for name in batch["item_id"].to_pylist()]
        assert len(rows) == found.to_run
        assert [row["item_index"] for row in rows] == [*range(len(rows))]
        return Compared(found, rows, gone)

    return run


@pytest.fixture
def stored(tmp_path: Path) -> VectorDataset:
    """`a` to `e`."""
    return make_dataset(tmp_path / "x.lance", [item(name) for name in "abcde"])


def test_without_a_store_everything_is_new(compare: Any) -> None:
    found = compare([item(name, shelf=number) for number, name in enumerate("abcd")])

    assert found.ids == [*"abcd"]
    assert (found.comparison.items, found.comparison.same, found.gone) == (4, 0, [])
    assert found.to_run[3] == {
        "item_index": 3, "item_id": "d", "uri": "s3://bucket/d", "shelf": 3, "_version": "5 v1",
        "_digest": found.to_run[3]["_digest"], "_etag": None, "_last_modified": None, "_content_hash": None,
    }  # fmt: skip


def test_a_night_of_changes(compare: Any, stored: VectorDataset) -> None:
    found = compare([item("a"), item("b", "6 v2"), item("f"), item("d"), item("e")], stored)

    assert found.ids == ["b", "f"]
    assert [one["_content_hash"] for one in found.to_run] == ["hash of b", None]
    assert (found.comparison.same, found.gone) == (3, ["c"])


def test_nothing_has_changed(compare: Any, stored: VectorDataset, tmp_path: Path) -> None:
    found = compare([item(name) for name in "ecbda"], stored)

    assert (found.comparison.to_run, found.comparison.same, found.gone) == (0, 5, [])
    assert not (tmp_path / "items.parquet").exists()


def test_an_item_without_a_version_is_asked_every_time(compare: Any, tmp_path: Path) -> None:
    dataset = make_dataset(
        tmp_path / "u.lance", [item("a", None), item("b", None)], etag='"1"', last_modified="Mon"
    )

    found = compare([item("a", None), item("b", None)], dataset)

    assert found.ids == ["a", "b"]
    assert {one["_etag"] for one in found.to_run} == {'"1"'}
    assert {one["_last_modified"] for one in found.to_run} == {"Mon"}


def test_another_uri_is_not_asked_with_the_validators_of_the_earlier_one(
    compare: Any, tmp_path: Path
) -> None:
    presigned = "https://host/{}?X-Amz-Credential=A&X-Amz-Signature={}"
    stored = [item(name, None) | {"uri": presigned.format(name, 1)} for name in "abc"]
    dataset = make_dataset(tmp_path / "u.lance", stored, etag='"1"', last_modified="Mon")
    moved = {
        "a": presigned.format("a", 2),
        "b": "https://host/other",
        "c": "https://host/c?size=2",
        "d": "/d",
    }

    found = compare([item(name, None) | {"uri": uri} for name, uri in moved.items()], dataset)

    asked = {one["item_id"]: (one["_etag"], one["_last_modified"]) for one in found.to_run}
    assert asked == {"a": ('"1"', "Mon"), "b": (None, None), "c": (None, None), "d": (None, None)}
    assert [one["_content_hash"] for one in found.to_run] == ["hash of a", "hash of b", "hash of c", None]


def test_an_item_that_the_source_calls_changed_is_read_whatever_its_site_says(
    compare: Any, tmp_path: Path
) -> None:
    stored = [item("a", "1"), item("b", None), item("c", "1")]
    dataset = make_dataset(tmp_path / "u.lance", stored, etag='"1"')

    found = compare([item("a", "2"), item("b", "1"), item("c", None)], dataset)

    asked = {one["item_id"]: one["_etag"] for one in found.to_run}
    assert asked == {"a": None, "b": '"1"', "c": '"1"'}


@pytest.mark.parametrize(("age_seconds", "is_asked"), [(-5, True), (1, True), (3, False)])
def test_a_file_that_was_young_when_it_was_listed_is_asked(
    compare: Any, tmp_path: Path, age_seconds: int, is_asked: bool
) -> None:
    changed = LISTED_AT - timedelta(seconds=age_seconds)
    young = item("a", f"5 {int(changed.timestamp()) * 10**9}")
    (row,) = compare([young]).to_run
    dataset = make_dataset(tmp_path / "u.lance", [young], digest=row["_digest"])

    again = compare([young], dataset, began_at=LISTED_AT + timedelta(days=1))

    assert again.ids == (["a"] if is_asked else [])
    if is_asked:  # it is old by now: what this night finds is certain
        dataset = make_dataset(tmp_path / "v.lance", [young], digest=again.to_run[0]["_digest"])
        assert compare([young], dataset).ids == []


@pytest.mark.parametrize("change", [{"uri": "s3://other/a"}, {"shelf": 2}])
def test_a_change_of_a_name_or_of_an_own_column_is_a_change(
    compare: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    dataset = make_dataset(tmp_path / "u.lance", [item("a", shelf=1)])

    assert compare([item("a", shelf=1)], dataset).ids == []
    assert compare([item("a", shelf=1) | change], dataset).ids == ["a"]


def test_the_order_of_the_columns_is_no_change(compare: Any, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "u.lance", [item("a", shelf=1, row=2)])

    assert compare([item("a", row=2, shelf=1)], dataset).ids == []
    assert compare([item("a", row=1, shelf=2)], dataset).ids == ["a"]
    assert compare([item("a", row=2, board=1)], dataset).ids == ["a"]  # another name


def test_an_item_that_was_gone_and_is_back_runs_and_is_not_gone_again(compare: Any, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "u.lance", [item("a"), item("b")], gone_at=LISTED_AT)

    found = compare([item("a")], dataset)

    assert (found.ids, found.to_run[0]["_content_hash"], found.gone) == (["a"], "hash of a", [])


@pytest.mark.parametrize("known", ["", "a", "ab"])
def test_an_id_that_occurs_twice_is_refused_with_both_uris(compare: Any, tmp_path: Path, known: str) -> None:
    dataset = make_dataset(tmp_path / "u.lance", [item(name) for name in known]) if known else None
    items = [item("a"), *(item(name) for name in "bcdef"), item("a") | {"uri": "s3://bucket/again"}]

    with pytest.raises(SourceError, match=r"'a' occurs twice.*s3://bucket/a and for s3://bucket/again"):
        compare(items, dataset)
    with pytest.raises(SourceError, match="'a' occurs twice"):
        compare([item("a"), item("a")], dataset)


def test_ids_whose_hashes_clash_are_no_duplicates(compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = comparing.id_hashes
    monkeypatch.setattr(comparing, "id_hashes", lambda ids: whole(ids) & 1)

    assert len(compare([item(f"{number}") for number in range(20)]).ids) == 20


def test_a_listing_that_ends_early_says_so(compare: Any, stored: VectorDataset) -> None:
    class Broken(ListedItems):
        def batches(self) -> Any:
            yield from super().batches()
            raise SourceError("the store went away")

    with pytest.raises(SourceError, match="went away"):
        compare(Broken([item("a")]), stored)


def test_a_column_of_another_type_is_refused(compare: Any, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "u.lance", [item("a", shelf=1, note=None)])

    with pytest.raises(SourceError, match=r"'shelf' of the source is string, in the store 'shelf' is int64"):
        compare([item("a", shelf="x", note="y")], dataset)


def test_a_limit_leaves_the_rest_and_marks_nothing_of_it_as_gone(compare: Any, stored: VectorDataset) -> None:
    found = compare([*(item(name, "7 v9") for name in "abcd"), item("f")], stored, most_items=2)

    assert (len(found.ids), found.comparison.left, found.gone) == (2, 3, ["e"])


def test_a_limit_takes_new_and_changed_items_before_those_that_are_only_asked(
    compare: Any, tmp_path: Path
) -> None:
    stored = [item(f"u{number}", None) for number in range(40)]
    dataset = make_dataset(tmp_path / "u.lance", stored)
    source = [*stored[:30], item("u30", "5 v1"), item("n1"), *stored[31:], item("n2", None)]

    found = compare(source, dataset, most_items=8)

    assert {*found.ids} > {"u30", "n1", "n2"}
    assert found.ids == [one["item_id"] for one in source if one["item_id"] in found.ids]  # in its order
    assert {one["_content_hash"] for one in found.to_run} >= {None, "hash of u30"}
    assert (found.comparison.to_run, found.comparison.left, found.comparison.new) == (8, 34, 2)


def test_one_place_in_four_is_for_items_that_are_only_asked(compare: Any, tmp_path: Path) -> None:
    stored = [item(f"u{number}", None) for number in range(40)]
    dataset = make_dataset(tmp_path / "u.lance", stored)
    source = [*stored, *(item(f"n{number}") for number in range(40))]

    ids = compare(source, dataset, most_items=16).ids

    assert sum(name.startswith("u") for name in ids) == 4
    assert len(ids) == 16
    alone = [
        compare(source, dataset, most_items=1, began_at=LISTED_AT + timedelta(days=day)).ids[0][0]
        for day in range(40)
    ]
    assert 0 < alone.count("u") < 20  # of 40 nights


def test_a_limit_takes_others_each_night(compare: Any) -> None:
    """Half of them: each one is reached within a few nights."""
    source = [item(f"{number}") for number in range(100)]
    missing = {one["item_id"] for one in source}
    left = []
    for day in range(10):
        missing -= {*compare(source, most_items=50, began_at=LISTED_AT + timedelta(days=day)).ids}
        left.append(len(missing))

    assert left[0] == 50
    assert 10 < left[1] < 40
    assert left[-1] == 0


def test_files_and_lists_have_versions_of_their_own(compare: Any, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"12345")
    listed = tmp_path / "list.csv"
    listed.write_text(f"url,ETag,id\n{folder}/a.png,x,1\nhttps://host/b.png,y,2\nhttps://host/c.png,,3\n")

    of_folder = compare(source_of(folder, ReadOptions()))
    of_list = compare(source_of(listed, ReadOptions()))

    state = f"5 {(folder / 'a.png').stat().st_mtime_ns}"
    assert [one["_version"] for one in of_folder.to_run] == [state]
    assert [one["_version"] for one in of_list.to_run] == [state, "y", None]
