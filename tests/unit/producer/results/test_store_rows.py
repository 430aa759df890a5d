"""The rows of a store at one version, read as those of a finished output."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.contract.jobs import DecodeRoute, Task
from clipfleet.contract.parts import PART_COLUMNS, part_schema
from clipfleet.contract.stores import StoreTarget
from clipfleet.errors import OutputDamagedError, ResultsNotReadyError, UsageError
from clipfleet.outputs import objects, open_output
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.one_row import find_row
from clipfleet.results.part_rows import PartRows
from clipfleet.results.rows import rows, vectors
from clipfleet.results.store_rows import StoreRows, store_rows
from clipfleet.store.dataset import VectorDataset, remove_dataset
from clipfleet.store.place import EmbeddedBy, StoreFile, StorePlace, store_place
from tests.support.store_rows import (
    DIMENSION,
    FINGERPRINT,
    LISTED_AT,
    NO_ADDRESSES,
    addresses_of,
    commit_gone,
    item,
    make_dataset,
    make_store,
    stored_rows,
)
from tests.support.vector_outputs import stored_output

ITEMS = [item(name, caption=f"a {name}") for name in "abcde"]


@pytest.fixture
def place(tmp_path: Path) -> StorePlace:
    return make_store(tmp_path / "store", ITEMS)


def dataset_of(place: StorePlace) -> VectorDataset:
    return VectorDataset.open(place.dataset_uri(FINGERPRINT))


def ids(reader: StoreRows) -> list[tuple[int, str]]:
    return [(row["item_index"], row["item_id"]) for row in rows(reader)]


def test_rows_are_those_of_an_output(place: StorePlace) -> None:
    reader = store_rows(place)

    first, *_ = found = [*rows(reader)]

    assert reader.read().schema == part_schema(DIMENSION, [pa.field("caption", pa.string())])
    assert len(found) == reader.count == 5
    assert first == {
        **dict.fromkeys(PART_COLUMNS),
        "item_index": 0, "item_id": "a", "uri": "s3://bucket/a", "status": "ok", "content_hash": "hash of a",
        "model_fingerprint": FINGERPRINT, "embedding": [1.0, 0.0, 0.0, 0.0], "caption": "a a",
    }  # fmt: skip


def test_vectors_are_in_the_order_of_the_rows(place: StorePlace) -> None:
    indexes, matrix = vectors(store_rows(place))

    assert indexes.tolist() == [0, 1, 2, 3, 4]
    assert (matrix.dtype, matrix[:, 1].tolist()) == (np.float16, [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    "columns", [["item_id"], ["item_index"], ["model_fingerprint", "status"], ["label", "embedding"]]
)
def test_some_columns_of_all_rows(place: StorePlace, columns: list[str]) -> None:
    stream = store_rows(place).read(columns)

    table = pa.Table.from_batches(stream.batches, stream.schema)

    assert (table.schema.names, table.num_rows) == (columns, 5)


def test_the_job_says_what_made_the_vectors(tmp_path: Path) -> None:
    made_by = EmbeddedBy(model="demo", decode=DecodeRoute.EXACT, fingerprint=FINGERPRINT, dimension=DIMENSION)
    place = store_place(str(tmp_path))
    place.create(made_by)
    make_dataset(place.dataset_uri(FINGERPRINT), ITEMS)

    job = store_rows(place).job()

    assert (job.task, job.model, job.decode) == (Task.EMBED, "demo", DecodeRoute.EXACT)
    assert job.source.extra_columns == ("caption",)


def test_a_version_stays_what_it_was(place: StorePlace) -> None:
    before = store_rows(place)
    began = datetime.now(UTC)
    rows = stored_rows([item("f", caption="new")])

    dataset_of(place).replace(NO_ADDRESSES, rows.to_batches(), {})

    assert [name for _, name in ids(before)] == [*"abcde"]
    now = store_rows(place)
    assert [name for _, name in ids(now)] == [*"abcdef"]
    assert before.finished_at() < began < now.finished_at() < datetime.now(UTC)
    assert ids(store_rows(place, str(before.version))) == ids(before)
    assert now.uri == f"{place.uri}@3"


def test_rows_that_are_gone_are_left_out(place: StorePlace) -> None:
    dataset = commit_gone(dataset_of(place), [ITEMS[1], ITEMS[3]])
    dataset.replace(NO_ADDRESSES, stored_rows([item("f", caption="new")]).to_batches(), {})
    reader = store_rows(place)

    assert ids(reader) == [(0, "a"), (1, "c"), (2, "e"), (3, "f")]
    assert reader.count == 4
    found = [reader.row_at(index) for index in range(-1, 5)]
    assert [one and one["item_id"][0].as_py() for one in found] == [None, "a", "c", "e", "f", None]
    assert [one["item_index"][0].as_py() for one in found if one] == [0, 1, 2, 3]


def test_rows_that_were_deleted_leave_no_hole(place: StorePlace) -> None:
    dataset = dataset_of(place)
    dataset.replace(addresses_of(dataset, [ITEMS[0], ITEMS[2]]), [], {})
    reader = store_rows(place)

    assert ids(reader) == [(0, "b"), (1, "d"), (2, "e")]
    assert find_row(reader, "d").row["item_index"] == 1


def test_all_rows_may_be_gone(place: StorePlace) -> None:
    commit_gone(dataset_of(place), ITEMS)
    reader = store_rows(place)

    assert (ids(reader), reader.count, reader.row_at(0)) == ([], 0, None)


def test_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no store"):
        store_rows(store_place(str(tmp_path)))


def test_a_store_without_vectors(tmp_path: Path) -> None:
    place = store_place(str(tmp_path))
    place.create(EmbeddedBy(model="demo"))

    with pytest.raises(ResultsNotReadyError, match="has no vectors yet"):
        store_rows(place)


def test_a_version_that_is_not_there(place: StorePlace) -> None:
    with pytest.raises(UsageError, match=r"no version 7 .*clipfleet store log"):
        store_rows(place, "7")


def test_a_dataset_that_is_missing(place: StorePlace) -> None:
    remove_dataset(place.dataset_uri(FINGERPRINT))

    with pytest.raises(OutputDamagedError, match=r"is gone, though .*store.json names it"):
        store_rows(place)


def test_a_switch_meanwhile(place: StorePlace) -> None:
    """store.json was read, then a migration ends and its earlier dataset is removed."""
    other = "f" * 16

    class Switching(StorePlace):
        def dataset_uri(self, fingerprint: str) -> str:
            if fingerprint == FINGERPRINT and Path(super().dataset_uri(FINGERPRINT)).exists():
                make_dataset(super().dataset_uri(other), ITEMS[:2])
                self.change(lambda store: with_fingerprint(store, other))
                remove_dataset(super().dataset_uri(FINGERPRINT))
            return super().dataset_uri(fingerprint)

    reader = store_rows(Switching(open_output(place.uri)))

    assert (reader.fingerprint, reader.count) == (other, 2)


def with_fingerprint(store: StoreFile, fingerprint: str) -> StoreFile:
    current = store.current.model_copy(update={"fingerprint": fingerprint})
    return store.model_copy(update={"current": current})


def test_the_rows_of_a_job_that_has_filled_a_store_are_there(output: FolderOutput, place: StorePlace) -> None:
    target = StoreTarget(uri=place.uri, store_id=place.read().store_id, listed_at=LISTED_AT)
    job = stored_output(output, task=Task.EMBED, store=target)
    for number in range(3):
        output.remove(objects.LAYOUT.part(number))
    reader = PartRows(output)

    with pytest.raises(UsageError, match=f"rows of job {job.job_id} are in the store {place.uri}: name that"):
        reader.read()
    output.remove(objects.SUCCESS)
    with pytest.raises(ResultsNotReadyError):
        reader.read()
