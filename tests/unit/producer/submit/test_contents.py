"""What changes the sum of a source's items, and what does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipfleet.contract.parts import INLINE_COLUMN, VERSION_COLUMN
from clipfleet.sources.batches import item_batch
from clipfleet.submit.contents import Contents

URIS = ["https://example.org/a.jpg", "https://example.org/b.jpg", "https://example.org/c.jpg"]


def batch(uris: list[str], first_index: int = 0, **extra: Any) -> pa.RecordBatch:
    columns = {name: pa.array(one) if isinstance(one, list) else one for name, one in extra.items()}
    ids = columns.pop("ids", pa.array([uri[-5:] for uri in uris], pa.string()))
    return item_batch(first_index, ids, pa.array(uris, pa.string()), columns)


def sum_of(*batches: pa.RecordBatch) -> str:
    contents = Contents()
    assert sum(one.num_rows for one in contents.counted(batches)) == contents.items
    return contents.sum


def test_neither_the_order_nor_the_batches_matter() -> None:
    whole = sum_of(batch(URIS))

    assert whole == sum_of(batch(URIS[::-1]))
    assert whole == sum_of(batch(URIS[:1]), batch([]), batch(URIS[1:], 1))
    assert len(whole) == 32


def test_an_item_more_or_less_or_twice_matters() -> None:
    sums = [sum_of(batch(uris)) for uris in ([], URIS[:2], URIS, [*URIS, URIS[0]], [*URIS[:2], URIS[0]])]

    assert len({*sums}) == len(sums)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("shelf", ["x", "y"], ["y", "x"]),
        ("shelf", ["x", None], ["x", ""]),
        ("shelf", [1, 2], [1, 3]),
        ("shelf", [0.5, 1.5], [0.5, float("nan")]),
        ("shelf", [True, False], [True, True]),
        ("ids", ["a", "b"], ["a", "c"]),
    ],
)
def test_every_column_matters(name: str, before: list[Any], after: list[Any]) -> None:
    first, again, changed = (sum_of(batch(URIS[:2], **{name: values})) for values in (before, before, after))
    assert first == again != changed


def test_values_of_neighbouring_columns_are_told_apart() -> None:
    assert sum_of(batch(URIS[:1], a=["x"], b=["yz"])) != sum_of(batch(URIS[:1], a=["xy"], b=["z"]))


def test_nested_columns_are_left_out() -> None:
    assert sum_of(batch(URIS[:1], boxes=[[[1, 2], [3]]])) == sum_of(batch(URIS[:1], boxes=[[[4]]]))


def test_images_that_come_with_the_items_are_hashed() -> None:
    def with_image(data: bytes | None) -> str:
        return sum_of(batch(URIS[:1], **{INLINE_COLUMN: pa.array([data], pa.binary())}))

    assert with_image(b"abc") == with_image(b"abc")
    assert len({with_image(b"abc"), with_image(b"xyz"), with_image(b""), with_image(None)}) == 4


def test_what_the_source_says_of_an_item_matters_and_is_taken_off() -> None:
    first, second = (batch(URIS[:1], **{VERSION_COLUMN: [etag]}) for etag in ("one", "two"))

    assert sum_of(first) != sum_of(second)
    (passed,) = Contents().counted([first])
    assert passed.equals(batch(URIS[:1]))


@pytest.mark.parametrize("form", ["{}", "file://{}", "FILE://localhost{}"])
def test_a_local_file_that_was_replaced_or_touched_matters(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.jpg"
    uri = form.format(path)
    sums = [sum_of(batch([uri]))]
    for data, time_ns in ((b"old", 1), (b"new", 1), (b"longer", 1), (b"longer", 2)):
        path.write_bytes(data)
        os.utime(path, ns=(time_ns, time_ns))
        sums.append(sum_of(batch([uri])))

    missing, old, *others = sums
    assert others[0] == old, "size and time of change are all that is looked at"
    assert len({missing, old, *others}) == 4


def test_local_files_may_stand_among_others(tmp_path: Path) -> None:
    (tmp_path / "ä b.jpg").write_bytes(b"1")
    uris = [URIS[0], str(tmp_path / "ä b.jpg"), "", "tar+file:///a.tar#offset=1&size=2&name=x", "/no\0name"]
    before = sum_of(batch(uris))

    (tmp_path / "ä b.jpg").write_bytes(b"12")

    assert sum_of(batch(uris)) != before


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/%FF.jpg"
    before = sum_of(batch([uri]))

    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"1")

    assert sum_of(batch([uri])) != before
