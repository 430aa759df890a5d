"""What stores rely on Lance for, in a folder and in S3: an upgrade that breaks it is seen here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from clipfleet.errors import OutputDamagedError, OutputUnavailableError, UsageError
from clipfleet.store.dataset import VectorDataset, VersionConflictError, remove_dataset
from tests.support.s3 import S3Bucket

SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("embedding", pa.list_(pa.float16(), 4)),
    ]
)


@pytest.fixture(params=["folder", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "a.lance")
    bucket: S3Bucket = request.getfixturevalue("s3")
    return f"{bucket.uri}/store/a.lance"


@pytest.fixture
def dataset(uri: str) -> VectorDataset:
    return VectorDataset.create(uri, SCHEMA)


def rows(ids: Sequence[str], size: int = 0) -> Iterator[pa.RecordBatch]:
    vectors = np.arange(4 * len(ids)).astype(np.float16)
    yield pa.RecordBatch.from_arrays(
        [
            pa.array(ids, pa.string()),
            pa.array([size] * len(ids), pa.int64()),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors), 4),
        ],
        schema=SCHEMA,
    )


NONE = np.empty(0, np.uint64)


def table(dataset: VectorDataset, **options: Any) -> pa.Table:
    batches = [*dataset.batches(["item_id", "size"], **options)]
    if batches:
        return pa.Table.from_batches(batches)
    return SCHEMA.append(pa.field("_rowaddr", pa.uint64())).empty_table()


def sizes(dataset: VectorDataset) -> dict[str, int]:
    found = table(dataset)
    ids = found["item_id"].to_pylist()
    assert len({*ids}) == len(ids)
    return dict(zip(ids, found["size"].to_pylist(), strict=True))


def addresses(dataset: VectorDataset, *ids: str) -> np.ndarray:
    found = table(dataset, with_address=True)
    wanted = np.isin(found["item_id"].to_numpy(), ids)
    chosen: np.ndarray = found["_rowaddr"].to_numpy()[wanted]
    return chosen


def test_a_new_dataset_is_empty_and_created_once(dataset: VectorDataset) -> None:
    again = VectorDataset.create(dataset.uri, SCHEMA)

    assert (dataset.version, dataset.count()) == (1, 0)
    assert (again.version, again.count(), again.schema) == (1, 0, SCHEMA)


def test_one_that_is_not_there(uri: str) -> None:
    with pytest.raises(FileNotFoundError):
        VectorDataset.open(uri)


def test_rows_are_replaced_in_one_version(dataset: VectorDataset) -> None:
    first = dataset.replace(NONE, rows(["a", "b", "c"]), {"job": "one"})

    second = first.replace(addresses(first, "b", "c"), rows(["b", "d"], 7), {"job": "two"})

    assert sizes(second) == {"a": 0, "b": 7, "d": 7}
    assert sizes(first) == {"a": 0, "b": 0, "c": 0}, "a version does not change"
    assert sizes(dataset.latest()) == sizes(second)
    assert [one.properties for one in second.versions()] == [{}, {"job": "one"}, {"job": "two"}]
    assert [one.number for one in second.versions()] == [1, 2, 3]
    assert second.properties == {"job": "two"}


def test_all_rows_may_go(dataset: VectorDataset) -> None:
    first = dataset.replace(NONE, rows(["a", "b"]), {})

    none = first.replace(addresses(first, "a", "b"), iter(()), {})
    back = none.replace(NONE, rows(["c"]), {})

    assert (none.count(), sizes(back)) == (0, {"c": 0})


def test_a_commit_of_nothing_is_a_version(dataset: VectorDataset) -> None:
    first = dataset.replace(NONE, rows(["a"]), {})

    assert first.replace(NONE, iter(()), {"job": "x"}).properties == {"job": "x"}


@pytest.mark.parametrize("is_empty", [True, False])
@pytest.mark.parametrize("keeps", [True, False])
def test_of_two_commits_on_one_version_one_is_refused(
    dataset: VectorDataset, is_empty: bool, keeps: bool
) -> None:
    if not is_empty:
        dataset = dataset.replace(NONE, rows(["a", "b"]), {})
    gone = NONE if keeps or is_empty else addresses(dataset, "a")
    dataset.replace(gone, rows(["c"], 1), {})

    with pytest.raises(VersionConflictError):
        dataset.replace(NONE, rows(["c"], 2), {})

    assert sizes(dataset.latest())["c"] == 1


def test_races_lose_and_double_nothing(dataset: VectorDataset) -> None:
    def add(number: int) -> int:
        tries = 0
        while True:
            tries += 1
            latest = dataset.latest()
            try:
                latest.replace(addresses(latest, "same"), rows([f"of-{number}", "same"], number), {})
            except VersionConflictError:
                continue
            return tries

    with ThreadPoolExecutor(4) as pool:
        tries = sum(pool.map(add, range(12)))

    assert {*sizes(dataset.latest())} == {"same", *(f"of-{number}" for number in range(12))}
    assert dataset.latest().version == 13
    assert tries >= 12


def test_rows_are_taken_by_address_in_the_order_asked(dataset: VectorDataset) -> None:
    first = dataset.replace(NONE, rows(["a", "b", "c"]), {})
    second = first.replace(addresses(first, "a"), rows(["d"]), {})

    wanted = np.concatenate([addresses(second, one) for one in ("d", "b")])

    assert second.take(wanted, ["item_id"])["item_id"].to_pylist() == ["d", "b"]


def test_slices_are_in_the_order_of_batches_without_what_is_gone(dataset: VectorDataset) -> None:
    first = dataset.replace(NONE, rows([f"{number:04}" for number in range(3000)]), {})
    second = first.replace(addresses(first, "0001", "2000"), rows(["new"]), {})
    ids = table(second)["item_id"].to_pylist()

    slices = (second.slice(start, 700, ["item_id"]) for start in range(0, 3000, 700))

    assert pa.concat_tables(slices)["item_id"].to_pylist() == ids
    assert (len(ids), ids[1], ids[-1]) == (2999, "0002", "new")


def test_vectors_come_back_as_they_were(dataset: VectorDataset) -> None:
    first = dataset.replace(NONE, rows(["a", "b"]), {})

    (batch,) = first.batches(["embedding"])

    assert batch["embedding"].type == pa.list_(pa.float16(), 4)
    assert batch["embedding"].flatten().to_pylist() == [*range(8)]


def test_conditions(dataset: VectorDataset) -> None:
    first = dataset.replace(NONE, rows(["a", "b"], 5), {})

    assert table(first, where="item_id = 'b' AND size > 4")["item_id"].to_pylist() == ["b"]
    assert first.count("size > 5") == 0
    for wrong in ("nothing = 1", "size >", "size = 'x'"):
        with pytest.raises(UsageError, match="the condition"):
            table(first, where=wrong)


def test_columns_are_added_as_nulls(dataset: VectorDataset) -> None:
    first = dataset.replace(NONE, rows(["a"]), {})

    wider = first.with_columns([pa.field("shelf", pa.string())], {"job": "x"})
    (batch,) = wider.batches(["item_id", "shelf"])

    assert batch.to_pylist() == [{"item_id": "a", "shelf": None}]
    with pytest.raises(VersionConflictError):
        first.with_columns([pa.field("other", pa.string())], {})


def test_a_version_by_its_number(dataset: VectorDataset) -> None:
    dataset.replace(NONE, rows(["a"]), {})

    assert VectorDataset.open(dataset.uri, 1).count() == 0
    with pytest.raises(UsageError, match="no version 9"):
        VectorDataset.open(dataset.uri, 9)


def test_what_keeps_alive_is_told_of_each_step_and_ends_the_commit(dataset: VectorDataset) -> None:
    def lost() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        dataset.replace(NONE, rows(["a"]), {}, alive=lost)

    assert dataset.latest().version == 1


def directions(count: int, first: int = 0) -> np.ndarray:
    """Vectors of different directions."""
    found = np.random.default_rng(first).standard_normal((count, 4)).astype(np.float16)
    return found.astype(np.float32)


def in_directions(vectors: np.ndarray, first: int = 0) -> Iterator[pa.RecordBatch]:
    ids = pa.array([str(first + number) for number in range(len(vectors))])
    flat = pa.array(vectors.astype(np.float16).ravel())
    yield pa.RecordBatch.from_arrays(
        [ids, pa.array(range(len(vectors)), pa.int64()), pa.FixedSizeListArray.from_arrays(flat, 4)],
        schema=SCHEMA,
    )


def most_similar(vectors: np.ndarray, query: np.ndarray, k: int) -> tuple[list[str], np.ndarray]:
    similarity = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    best = np.argsort(-similarity)[:k]
    return [str(number) for number in best], similarity[best]


@pytest.mark.parametrize("queries", [1, 3])
def test_an_exact_search_finds_the_most_similar_rows(dataset: VectorDataset, queries: int) -> None:
    vectors = directions(600)
    first = dataset.replace(NONE, in_directions(vectors), {})

    found = first.nearest(vectors[5 : 5 + queries] * 3, 10, ["size", "item_id"], exact=True)

    assert len(found) == queries
    for number, answer in enumerate(found):
        query = (vectors[5 + number] * 3).astype(np.float16).astype(np.float32)
        ids, similarity = most_similar(vectors, query, 10)
        assert answer.column_names == ["size", "item_id", "similarity"]
        assert answer["item_id"].to_pylist() == ids
        assert np.allclose(answer["similarity"].to_numpy(), similarity, atol=1e-6)


@pytest.mark.parametrize("queries", [1, 2])
def test_a_search_with_a_condition_looks_only_where_it_holds(dataset: VectorDataset, queries: int) -> None:
    vectors = directions(50)
    first = dataset.replace(NONE, in_directions(vectors), {})

    found = first.nearest(vectors[:queries], 10, ["size"], where="size >= 45")
    none = first.nearest(vectors[:queries], 10, ["size"], where="size > 50")

    assert [sorted(one["size"].to_pylist()) for one in found] == [[45, 46, 47, 48, 49]] * queries
    assert [one.num_rows for one in none] == [0] * queries
    with pytest.raises(UsageError, match="the condition"):
        first.nearest(vectors[:queries], 10, ["size"], where="nothing = 1")


def test_a_search_where_nothing_is(dataset: VectorDataset) -> None:
    assert [one.num_rows for one in dataset.nearest(directions(2), 3, ["item_id"])] == [0, 0]


def test_an_index_finds_rows_that_were_there_and_those_that_come_and_go(dataset: VectorDataset) -> None:
    vectors = directions(600)
    first = dataset.replace(NONE, in_directions(vectors), {})
    assert first.index_facts() is None

    indexed = first.create_index({"kind": "index"})
    gone = addresses(indexed, "7")
    later = indexed.replace(gone, in_directions(vectors[7:8], 9000), {}).with_columns(
        [pa.field("shelf", pa.string())], {}
    )
    facts = later.index_facts()

    assert (indexed.version, indexed.properties) == (first.version + 1, {"kind": "index"})
    assert facts is not None
    assert (facts.kind, facts.rows) == ("IVF_SQ", 599)
    assert facts.stored_bytes > 600
    for one in later.nearest(vectors[[7, 7]], 3, ["item_id", "shelf"]):
        assert one["item_id"][0].as_py() == "9000"
        assert one["similarity"][0].as_py() > 0.999
        assert "7" not in one["item_id"].to_pylist()
    assert later.nearest(vectors[8:9], 1, ["item_id"])[0]["item_id"].to_pylist() == ["8"]


def test_an_index_outlives_a_compaction(dataset: VectorDataset) -> None:
    vectors = directions(300)
    indexed = dataset.replace(NONE, in_directions(vectors), {}).create_index({})
    gone = addresses(indexed, *(str(number) for number in range(0, 300, 5)))
    later = indexed.replace(gone, in_directions(vectors[7:9], 9000), {})

    compacted = later.compact()

    assert compacted.version > later.version, "a fifth was deleted"
    exact, by_index = (
        [
            one["item_id"].to_pylist()
            for one in compacted.nearest(vectors[6:60], 1, ["item_id"], exact=is_exact)
        ]
        for is_exact in (True, False)
    )
    facts = compacted.index_facts()
    assert by_index == exact
    assert facts is not None
    assert facts.rows == 240
    made = [one.properties for one in compacted.versions(after=later.version)]
    assert made == [{"kind": "compact"}] * len(made) != [], "Lance has the new ids of the index for itself"


def test_a_new_index_replaces_the_one_before(dataset: VectorDataset) -> None:
    first = dataset.replace(NONE, in_directions(directions(300)), {}).create_index({})
    later = first.replace(NONE, in_directions(directions(10, 1), 1000), {})

    again = later.create_index({})
    facts = again.index_facts()

    assert facts is not None
    assert facts.rows == 310
    assert first.index_facts() != facts, "a version does not change"


def test_a_commit_beside_the_build_of_an_index_loses_nothing(dataset: VectorDataset) -> None:
    first = dataset.replace(NONE, in_directions(directions(300)), {})
    other = first.replace(addresses(first, "7"), in_directions(directions(1, 5), 1000), {})

    try:
        made = first.create_index({})
    except VersionConflictError:
        made = dataset.latest().create_index({})

    assert sizes(made) == sizes(other)
    found = made.nearest(directions(1, 5), 1, ["item_id"])[0]
    assert found["item_id"].to_pylist() == ["1000"]


def test_what_keeps_alive_ends_the_build_of_an_index(dataset: VectorDataset) -> None:
    first = dataset.replace(NONE, in_directions(directions(300)), {})

    def lost() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        first.create_index({}, alive=lost)

    assert dataset.latest().index_facts() is None


def test_rows_by_their_positions(dataset: VectorDataset) -> None:
    first = dataset.replace(NONE, rows(["a", "b", "c", "d"]), {})
    second = first.replace(addresses(first, "b"), rows(["e"]), {})

    assert second.at(np.array([3, 1]), ["item_id"])["item_id"].to_pylist() == ["e", "c"]


def test_damaged_files_are_reported_by_each_read(tmp_path: Path) -> None:
    made = VectorDataset.create(str(tmp_path / "a.lance"), SCHEMA).replace(NONE, rows(["a", "b"]), {})
    all_rows = addresses(made, "a", "b")
    for path in (tmp_path / "a.lance" / "data").iterdir():
        path.write_bytes(b"nothing that Lance reads")

    dataset = VectorDataset.open(made.uri)
    reads: list[Callable[[], object]] = [
        lambda: table(dataset),
        lambda: table(dataset, where="size = 0"),
        lambda: dataset.slice(0, 1, ["size"]),
        lambda: dataset.take(all_rows, ["size"]),
        lambda: dataset.at(np.array([1]), ["size"]),
        lambda: dataset.nearest(directions(1), 1, ["size"]),
        lambda: dataset.nearest(directions(2), 1, ["size"], where="size = 0", exact=True),
    ]
    for read in reads:
        with pytest.raises(OutputUnavailableError, match=str(tmp_path)):
            read()


def test_a_dataset_is_removed_with_all_versions(dataset: VectorDataset) -> None:
    dataset.replace(NONE, rows(["a"]), {})

    remove_dataset(dataset.uri)
    remove_dataset(dataset.uri)

    with pytest.raises(FileNotFoundError):
        VectorDataset.open(dataset.uri)


def many(dataset: VectorDataset, nights: int = 4) -> VectorDataset:
    """A hundred rows and one more of each night, which replaces the one before it."""
    dataset = dataset.replace(NONE, rows([f"{number:03}" for number in range(100)]), {"job": "0"})
    for night in range(1, nights):
        dataset = dataset.replace(addresses(dataset, "x"), rows(["x"], night), {"job": str(night)})
    return dataset


def test_compaction_keeps_rows_and_order(dataset: VectorDataset) -> None:
    before = many(dataset)
    signs: list[int] = []

    after = before.compact(alive=lambda: signs.append(1))

    assert (after.version, dataset.latest().version) == (7, 7)
    assert table(after).equals(table(before))
    assert [dict(one.properties) for one in after.versions(after=5)] == [
        {"kind": "compact"},  # numbers for fragments are reserved
        {"kind": "compact"},
    ]
    assert signs
    assert after.compact() is after, "there is nothing left to do"
    assert sizes(before)["x"] == 3, "an earlier version can be read"


def test_a_commit_and_a_compaction_do_not_overwrite_each_other(dataset: VectorDataset) -> None:
    before = many(dataset)

    def another() -> None:
        latest = before.latest()
        latest.replace(addresses(latest, "007"), rows(["y"]), {})

    with pytest.raises(VersionConflictError):
        before.compact(alive=another)
    assert {*sizes(before.latest())} == {*sizes(before), "y"} - {"007"}

    stale = before.latest()
    compacted = stale.compact()
    with pytest.raises(VersionConflictError):
        stale.replace(addresses(stale, "x"), rows(["x"], 9), {})
    assert sizes(compacted) == sizes(stale)


def test_rows_of_equal_fragments_are_left_out(dataset: VectorDataset) -> None:
    before = many(dataset)
    after = before.replace(addresses(before, "x"), rows(["x", "z"], 8), {})

    assert table(after, other_than=before)["item_id"].to_pylist() == ["x", "z"]
    assert table(before, other_than=after)["item_id"].to_pylist() == ["x"]
    assert table(after, other_than=after).num_rows == 0


def test_files_hold_deleted_rows_until_they_are_written_anew(dataset: VectorDataset) -> None:
    before = many(dataset)
    gone = before.replace(addresses(before, "005"), iter(()), {})
    ids = pa.array(["005", "x", "nothing"])

    known: dict[str, set[str]] = {}
    found = gone.fragments_holding(ids, known)
    after = gone.without(ids, found, {"kind": "forget"}, alive=lambda: None)

    assert set().union(*known.values()) == {"005", "x"}
    assert len(found) == 2, "the one of the first night, and that of the last row"
    assert sizes(after) == {name: size for name, size in sizes(before).items() if name not in ("005", "x")}
    assert after.fragments_holding(ids, {}) == set()
    assert after.properties == {"kind": "forget"}


def test_versions_are_dropped_with_the_files_that_only_they_have(dataset: VectorDataset) -> None:
    newest = many(dataset).compact()

    freed = newest.drop_versions([2, 3, 77, 7], leftovers=False)

    assert freed > 0
    assert [*newest.times()] == [1, 4, 5, 6, 7], "the newest one stays"
    assert VectorDataset.open(newest.uri, 4).count() == 101
    newest.drop_versions([1, 4, 5, 6], leftovers=True)
    assert [*newest.times()] == [7]
    assert newest.latest().count() == 101
    assert newest.drop_versions([], leftovers=True) == 0


def test_a_version_that_was_removed_while_it_is_read_is_named(dataset: VectorDataset) -> None:
    reader = dataset.replace(NONE, rows(["a", "b"]), {})
    all_rows = addresses(reader, "a", "b")
    newest = reader.replace(all_rows, rows(["c"]), {})
    newest.drop_versions([1, 2], leftovers=True)

    reads: list[Callable[[], object]] = [
        lambda: table(reader),
        lambda: reader.count("size = 0"),
        lambda: reader.slice(0, 1, ["size"]),
        lambda: reader.take(all_rows, ["size"]),
        lambda: reader.at(np.array([1]), ["size"]),
        lambda: reader.nearest(directions(1), 1, ["size"]),
        lambda: reader.committed_at,
    ]
    for read in reads:
        with pytest.raises(OutputUnavailableError, match=r"version 2 was removed meanwhile .*: run it again"):
            read()
    assert sizes(newest) == {"c": 0}


def test_versions_that_are_removed_while_they_are_listed_are_left_out(
    dataset: VectorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = many(dataset)
    times = VectorDataset.times
    seen = [times(newest)]
    newest.drop_versions([2, 3], leftovers=False)
    monkeypatch.setattr(VectorDataset, "times", lambda one: seen.pop() if seen else times(one))

    assert [one.number for one in newest.versions()] == [1, 4, 5]


def test_a_dataset_that_was_removed_while_it_is_read_is_named(dataset: VectorDataset) -> None:
    reader = dataset.replace(NONE, rows(["a", "b"]), {})
    remove_dataset(reader.uri)

    with pytest.raises(OutputUnavailableError, match=r"removed meanwhile .* or its disk is not mounted"):
        table(reader)


def test_a_version_that_is_not_there_is_told_from_a_dataset_that_cannot_be_read(
    dataset: VectorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.replace(NONE, rows(["a"]), {})
    with pytest.raises(UsageError, match=r"has no version 3 \(any more\)"):
        VectorDataset.open(dataset.uri, 3)
    with pytest.raises(FileNotFoundError):
        VectorDataset.open(f"{dataset.uri}-other", 2)

    opened, failures = lance.dataset, ["LanceError(IO): Generic S3 error: connection refused"]

    def open_later(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise ValueError(failures.pop())  # as Lance does
        return opened(*arguments, **options)

    monkeypatch.setattr(lance, "dataset", open_later)
    with pytest.raises(OutputUnavailableError, match="connection refused"):
        VectorDataset.open(dataset.uri, 2)
    assert VectorDataset.open(dataset.uri, 2).version == 2


def test_an_endpoint_that_is_away_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_REGION": "r"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")

    with pytest.raises(OutputUnavailableError, match="s3://bucket/store"):
        VectorDataset.open("s3://bucket/store")


def test_what_a_killed_commit_has_left_is_removed(dataset: VectorDataset) -> None:
    killed = many(dataset)
    began = killed.times()[1].replace(microsecond=0)

    def conflict() -> Iterator[pa.RecordBatch]:
        yield from rows(["z"] * 5000)
        latest = killed.latest()
        latest.replace(NONE, rows(["y"]), {})

    assert not killed.has_files_of_no_version(began)
    with pytest.raises(VersionConflictError):
        killed.replace(addresses(killed, "001"), conflict(), {})
    newest = killed.latest()
    used = newest.stored_bytes()
    assert newest.has_files_of_no_version(began)

    newest.drop_versions([], leftovers=False)
    assert newest.has_files_of_no_version(began), "it may be a commit of another program"
    assert newest.has_leftovers(began + timedelta(days=1))
    newest.drop_versions([], leftovers=True)

    assert not newest.has_files_of_no_version(began)
    assert newest.stored_bytes() < used
    assert newest.latest().count() == 102


def test_leftovers_are_files_that_no_version_has(
    dataset: VectorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyError

    first = dataset.replace(NONE, in_directions(directions(300)), {}).create_index({})
    newest = first.replace(addresses(first, "7"), in_directions(directions(10, 1), 1000), {}).create_index({})
    tomorrow = newest.committed_at + timedelta(days=1)
    assert not newest.has_leftovers(tomorrow), "all files belong to some version"

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(VectorDataset, "_commit", killed)
        newest.create_index({})

    assert newest.has_leftovers(tomorrow)
    assert not newest.has_leftovers(newest.committed_at.replace(microsecond=0)), "it may go on"
    newest.drop_versions([], leftovers=True)
    assert not newest.has_leftovers(tomorrow)


def test_a_dropped_version_whose_files_are_gone_already(dataset: VectorDataset) -> None:
    """Removal that was killed between two files goes on."""
    newest = many(dataset)
    if newest.uri.startswith("s3://"):
        pytest.skip("files are removed in a folder here")
    only_of_the_second = VectorDataset.open(newest.uri, 3)._files() - newest._files()
    for name in only_of_the_second:
        (Path(newest.uri) / name).unlink()

    newest.drop_versions([1, 2, 3, 4], leftovers=True)

    assert [*newest.times()] == [5]
    assert newest.latest().count() == 101


def test_a_clone_with_files_elsewhere_is_not_opened(tmp_path: Path) -> None:
    """Its files may lie where a worker must not read."""
    dataset = VectorDataset.create(str(tmp_path / "secret"), SCHEMA).replace(NONE, rows("a"), {})
    dataset._dataset.shallow_clone(str(tmp_path / "clone"), dataset.version)

    with pytest.raises(OutputDamagedError, match="has files elsewhere"):
        VectorDataset.open(str(tmp_path / "clone"))


def test_a_slice_says_that_a_file_is_missing(tmp_path: Path) -> None:
    VectorDataset.create(str(tmp_path / "a"), SCHEMA).replace(NONE, rows("abc"), {})
    for file in (tmp_path / "a" / "data").iterdir():
        file.unlink()

    with pytest.raises(OutputDamagedError, match="Not found"):
        VectorDataset.open(str(tmp_path / "a")).slice(0, 2, ["item_id"])
