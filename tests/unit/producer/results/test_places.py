"""Rows by the place that a user names."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfleet.errors import UsageError
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from clipfleet.results.places import open_rows
from clipfleet.results.store_rows import StoreRows
from clipfleet.store.dataset import VectorDataset
from tests.support.store_rows import FINGERPRINT, NO_ADDRESSES, item, make_store, stored_rows
from tests.support.vector_outputs import stored_output


def test_a_store_at_a_version(tmp_path: Path) -> None:
    place = make_store(tmp_path, [item("a")])
    later = stored_rows([item("b")])
    VectorDataset.open(place.dataset_uri(FINGERPRINT)).replace(NO_ADDRESSES, later.to_batches(), {})

    now, before = open_rows(str(tmp_path)), open_rows(str(tmp_path), "2")

    assert isinstance(now, StoreRows)
    assert isinstance(before, StoreRows)
    assert (now.version, now.count, before.version, before.count) == (3, 2, 2, 1)


def test_an_output(output: FolderOutput) -> None:
    stored_output(output)

    assert isinstance(open_rows(output.uri), PartRows)
    with pytest.raises(UsageError, match=r"is no store: only stores have versions, leave `as_of=` out"):
        open_rows(output.uri, "2")


def test_a_version_that_is_none(tmp_path: Path) -> None:
    make_store(tmp_path, [item("a")])

    with pytest.raises(UsageError, match="'yesterday' is neither a version nor a date"):
        open_rows(str(tmp_path), "yesterday")
