"""Groups of duplicates: of equal files, of close vectors, of outputs and of stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.errors import UsageError
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from clipfleet.results.rows import RowReader
from clipfleet.results.store_rows import store_rows
from clipfleet.search import close_pairs
from clipfleet.search.duplicates import Group, duplicates
from tests.support.store_rows import commit_gone, item, make_store
from tests.support.stored_vectors import place_vectors, unit_vectors, vector_rows

FINGERPRINT = "0123456789abcdef"


def place(
    output: FolderOutput, vectors: np.ndarray, hashes: dict[int, str | None], part: int = 700
) -> PartRows:
    """An output with these vectors, in several parts; `hashes` instead of those of its rows."""
    rows = vector_rows(0, vectors, FINGERPRINT)
    own = rows["content_hash"].to_pylist()
    changed = [hashes.get(number, one) for number, one in enumerate(own)]
    position = rows.schema.get_field_index("content_hash")
    rows = rows.set_column(position, rows.schema.field(position), pa.array(changed, pa.string()))
    place_vectors(output, [rows.slice(start, part) for start in range(0, len(rows), part)])
    return PartRows(output)


def groups_of(reader: RowReader, threshold: float = 0.97) -> list[Group]:
    with duplicates(reader, threshold) as found:
        groups = list(found.groups)
        assert found.count == len(groups)
        assert found.surplus == sum(len(group.members) - 1 for group in groups)
    return groups


def members(groups: Sequence[Group]) -> list[list[int]]:
    """The numbers in the ids of the items."""
    return [[int(one.item_id.rpartition("-")[2]) for one in group.members] for group in groups]


def test_planted_groups_and_nothing_else(output: FolderOutput) -> None:
    rng = np.random.default_rng(3)
    vectors = unit_vectors(3, 6000, 128)
    places = rng.permutation(6000)[:1000].reshape(500, 2)
    vectors[places[:, 1]] = vectors[places[:, 0]] + rng.normal(0, 0.005, (500, 128))

    groups = groups_of(place(output, vectors, {}))

    assert sorted(members(groups)) == sorted(np.sort(places, axis=1).tolist())
    assert not any(group.are_equal for group in groups)
    assert all(group.members[0].cosine > 0.999 > 0.97 < group.members[1].cosine < 1 for group in groups)


def test_equal_files_come_first_and_large_groups_before_small_ones(output: FolderOutput) -> None:
    vectors = unit_vectors(1, 40, 64)
    vectors[[7, 8, 9]] = vectors[2]  # alike, 8 with the bytes of 2
    vectors[[21, 22]] = vectors[20]
    hashes: dict[int, str | None] = {8: "x", 2: "x", 21: "y", 22: "y", 20: "y", 30: "z", 31: "z"}

    groups = groups_of(place(output, vectors, hashes))

    assert members(groups) == [[20, 21, 22], [30, 31], [2, 7, 8, 9]]
    assert [group.are_equal for group in groups] == [True, True, False]
    last = groups[-1].members
    assert [one.content_hash == "x" for one in last] == [True, False, True, False]
    assert last[0].uri == "https://images.example/02/00000002.jpg"


def test_rows_without_a_hash_are_not_equal(output: FolderOutput) -> None:
    assert groups_of(place(output, unit_vectors(1, 5, 64), dict.fromkeys(range(5)))) == []


def test_a_chain_is_one_group_whose_members_say_how_far_they_are_from_the_first(output: FolderOutput) -> None:
    angles = np.array([0, 0.15, 0.3, 2])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)

    (group,) = groups_of(place(output, vectors, {}))

    assert members([group]) == [[0, 1, 2]]
    assert [round(one.cosine, 3) for one in group.members] == [1, 0.989, 0.955]


def test_a_large_group_is_not_read_at_once(output: FolderOutput, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counted(vectors: np.ndarray) -> np.ndarray:
        read.append(len(vectors))
        return unit(vectors)

    unit = close_pairs.unit
    for module in ("close_pairs", "duplicates"):
        monkeypatch.setattr(f"clipfleet.search.{module}.unit", counted)
    vectors = np.repeat(unit_vectors(1, 1, 8), 10_000, axis=0)

    (group,) = groups_of(place(output, vectors, dict.fromkeys(range(10_000), "same")))

    assert len(group.members) == 10_000
    assert max(read) <= 8192


def test_rows_of_a_store_whose_items_are_there(tmp_path: Path) -> None:
    items = [item(name) for name in ("a-0", "b-1", "c-2", "d-3")]
    store = make_store(tmp_path / "store", items, embedding=[0.0, 1.0, 0.0, 0.0])
    commit_gone(store_rows(store).dataset, items[1:2])

    (group,) = groups_of(store_rows(store))

    assert sorted(members([group])[0]) == [0, 2, 3]
    (before,) = groups_of(store_rows(store, "2"))
    assert sorted(members([before])[0]) == [0, 1, 2, 3]


def test_an_output_without_vectors(output: FolderOutput) -> None:
    rows = vector_rows(0, unit_vectors(1, 3, 4), FINGERPRINT, failed=range(3))
    place_vectors(output, [rows])

    with pytest.raises(UsageError, match="no row has a vector"):
        groups_of(PartRows(output))
