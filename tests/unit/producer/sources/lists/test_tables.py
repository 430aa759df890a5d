"""Tables and lists beside .txt and .csv: tabs, gzip, JSON lines, Parquet; our own lists of failures."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.contract.parts import INLINE_COLUMN
from clipfleet.errors import SourceError
from clipfleet.sources import ReadOptions, open_source
from tests.support.sources import items, problem, table_of, uris

URL = "https://a/1.jpg"
GZIPPED = gzip.compress(b"".join(b"/%d.jpg\n" % (number * 7919) for number in range(9000)))


def write_jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_parquet(path: Path, columns: Any, **options: Any) -> Path:
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


class TestGzip:
    def test_several_members_are_one_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"/1.jpg\n") + gzip.compress(b"/2.jpg\n"))

        assert uris(tmp_path / "a.txt.gz") == ["/1.jpg", "/2.jpg"]

    def test_one_that_breaks_off_is_named_after_the_rows_before(self, tmp_path: Path) -> None:
        lines = "".join(f"https://a/{number * 7919}.jpg\n" for number in range(50_000))
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(lines.encode())[:-1000])
        batches = open_source(str(tmp_path / "a.txt.gz")).batches()

        assert next(batches).num_rows == 512
        with pytest.raises(SourceError, match=r"a\.txt\.gz: the gzip file is truncated"):
            list(batches)

    @pytest.mark.parametrize(
        ("name", "data", "words"),
        [
            ("a.csv.gz", b"url\nx.jpg\n", "a.csv.gz: not a gzip file, despite its name"),
            ("a.txt.gz", GZIPPED[:3000] + b"\xff" * 100 + GZIPPED[3100:], "a.txt.gz: "),
            ("a.txt", gzip.compress(b"/1.jpg\n", mtime=0), "looks like gzip"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path: Path, name: str, data: bytes, words: str) -> None:
        (tmp_path / name).write_bytes(data)

        assert words in problem(tmp_path / name)


class TestJsonl:
    def test_types_are_kept_and_what_is_nested_is_json(self, tmp_path: Path) -> None:
        first = {"shelf": 3, "price": 1.5, "new": True, "tags": ["a", "é"], "more": {"x": None}}
        second = {"shelf": None, "price": 2, "new": False, "tags": None, "late": "z"}
        named = [{"url": "/a", "id": 7}, {"url": "b.jpg", "id": "b"}]
        path = write_jsonl(tmp_path / "a.jsonl", named[0] | first, named[1] | second)

        schema = table_of(path).schema

        nested = {"tags": '["a", "é"]', "more": '{"x": null}', "late": None}
        assert items(path) == [
            {"item_id": "7", "uri": "/a"} | first | nested,
            {"item_id": "b", "uri": f"{tmp_path}/b.jpg"} | second | {"more": None},
        ]
        expected = {"shelf": "int64", "price": "double", "new": "bool", "tags": "string"}
        assert {name: str(schema.field(name).type) for name in expected} == expected

    @pytest.mark.parametrize(
        ("records", "expected"),
        [
            ([{"url": "/1", "x": x} for x in (1, "one", True, 2**70)],
             [("0", "/1", "1"), ("1", "/1", "one"), ("2", "/1", "true"), ("3", "/1", str(2**70))]),
            ([{"url": None}, {"x": None}, {"url": 5}, {"url": " /a "}],
             [("0", "", None), ("1", "", None), ("2", "/base/5", None), ("3", "/a", None)]),
            ([{"url": "/1", "id": "a"}, {"url": "/1"}, {"url": "/1", "id": None}],
             [("a", "/1"), ("1", "/1"), ("2", "/1")]),
            ([{"url": "/\ud83d", "x": "\ud83d", "y": ["\ud83d"]}], [("0", "/?", "?", '["?"]')]),
            ([{"url": "/1", "": 1}], [("0", "/1", 1)]),
        ],
        ids=["mixed types are text", "odd URLs are rows", "the index as id", "half a character", "no name"],
    )  # fmt: skip
    def test_rows(self, tmp_path: Path, records: list[Any], expected: list[tuple[Any, ...]]) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", *records)

        assert [tuple(row.values()) for row in items(path, base_uri="/base")] == expected

    def test_blank_lines_and_a_byte_order_mark(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"url": "/1"}\r\n\n \n{"url": "/2"}')

        assert uris(tmp_path / "a.jsonl") == ["/1", "/2"]

    def test_columns_that_are_chosen(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", {"Link": URL, "sku": 5, "id": 1})

        assert items(path, url_column="link", id_column="sku") == [{"item_id": "5", "uri": URL, "id": 1}]
        assert "`id_column=` 'nope'" in problem(path, url_column="link", id_column="nope")

    def test_what_comes_late_is_kept_as_json(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("clipfleet.sources.lists.jsonl._SAMPLE_RECORDS", 2)
        records: list[dict[str, Any]] = [{"n": 1}, {"n": 2}, {"n": "three", "new": [1]}, {"n": 4}]
        path = write_jsonl(tmp_path / "a.jsonl", *({"url": URL} | record for record in records))

        assert [(row["n"], row["other_fields"]) for row in items(path)] == [
            (1, None), (2, None), (None, '{"new": [1], "n": "three"}'), (4, None),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("", "a.jsonl: the file is empty"),
            ("\n \n", "a.jsonl: the file holds only blank lines"),
            ('{"url": "a"}\n\n{"url": "b"\n', "a.jsonl:3: not a line of JSON: Expecting ',' delimiter"),
            ('{"url": "a"}\n["b"]\n', "a.jsonl:2: not a JSON object but a list"),
            ("[" * 100_000 + "\n", "a.jsonl:1: not a line of JSON"),
            ('{"link": "a"}\n', "a.jsonl: no column named url"),
            ('{"url": "a", "label": 1, "source_label": 2}\n', "a.jsonl: two columns would be named"),
        ],
    )
    def test_what_is_wrong_names_file_and_line(self, tmp_path: Path, content: str, words: str) -> None:
        (tmp_path / "a.jsonl").write_text(content)

        assert f"{tmp_path}/{words}" in problem(tmp_path / "a.jsonl")


@pytest.mark.parametrize("extra", [{"source_label": "cat", "shelf": 3}, {"url": "/old.jpg", "id": 9}])
def test_a_list_of_failures_is_an_input_with_its_columns(tmp_path: Path, extra: dict[str, Any]) -> None:
    failed = {"item_index": 7, "item_id": "a", "uri": URL, "error_code": "not_found", "error_detail": "404"}
    path = write_jsonl(tmp_path / "_errors.jsonl", failed | extra)

    assert items(path) == [{"item_id": "a", "uri": URL} | extra]


NS = 1_600_000_000_123_456_789
WHEN = "2020-09-13 12:26:40.123456789"
WITHOUT_PANDAS = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "pandas":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
from tests.support.sources import items
print(json.dumps(items(sys.argv[1])))
"""


def strange_columns() -> dict[str, pa.Array]:
    """One value and a null of each type that not every reader of the results knows."""
    when, zoned = pa.timestamp("ns"), pa.timestamp("ns", "Europe/Berlin")
    types: dict[str, tuple[Any, pa.DataType]] = {
        "list": ([NS], pa.list_(when)),
        "large_list": ([NS], pa.large_list(when)),
        "list_view": ([NS], pa.list_view(when)),
        "large_list_view": ([NS], pa.large_list_view(when)),
        "fixed_list": ([NS], pa.list_(when, 1)),
        "deep": ([[[NS]], None], pa.list_(pa.list_(pa.list_(when)))),
        "zoned": ([NS], pa.list_(zoned)),
        "nowhere": ([1000], pa.list_(pa.timestamp("ms", "Mars/Olympus"))),
        "nowhere_flat": (1000, pa.timestamp("ms", "Mars/Olympus")),
        "far": ([2**62], pa.list_(pa.timestamp("ms"))),
        "far_day": ([2**30], pa.list_(pa.date32())),
        "time": ([123_456_789], pa.list_(pa.time64("ns"))),
        "duration": ([NS], pa.list_(pa.duration("ns"))),
        "far_duration": ([2**62], pa.list_(pa.duration("s"))),
        "map": ([(NS, 1)], pa.map_(when, pa.int8())),
        "map_twice": ([("a", 1), ("a", 2)], pa.map_(pa.string(), pa.int8())),
        "struct": ({"a": NS, "b": b"\xff"}, pa.struct([("a", when), ("b", pa.binary())])),
        "decimal": ([decimal.Decimal("1.50")], pa.list_(pa.decimal256(50, 2))),
        "bytes": ([b"\xff"], pa.list_(pa.binary())),
        "no_number": ({"a": float("nan")}, pa.struct([("a", pa.float64())])),
        "half": ([0.5], pa.list_(pa.float16())),
        "nulls": ([None], pa.list_(pa.null())),
    }
    columns = {name: pa.array([value, None], kind) for name, (value, kind) in types.items()}
    words = pa.DictionaryArray.from_arrays([0], pa.array([NS], when))
    columns["dictionary"] = pa.ListArray.from_arrays([0, 1, 1], words, mask=pa.array([False, True]))
    columns["uuid"] = pa.array([uuid.UUID(int=7).bytes, None], pa.uuid())
    columns["extension"] = pa.ExtensionArray.from_storage(
        pa.opaque(pa.list_(when), "a", "b"), columns["list"]
    )
    same = pa.StructArray.from_arrays([[1, 2], [3, 4]], names=["a", "a"], mask=pa.array([False, True]))
    return columns | {"same": same}


EXPECTED = {
    **{name: [WHEN] for name in ("list", "large_list", "list_view", "large_list_view", "fixed_list")},
    "deep": [[[WHEN]], None],
    "zoned": ["2020-09-13 14:26:40.123456789+0200"],
    "nowhere": ["1970-01-01 00:00:01.000Z"],
    "nowhere_flat": "1970-01-01 00:00:01.000Z",
    "far": [f"<value out of range: {2**62}>"],
    "far_day": [f"<value out of range: {2**30}>"],
    "time": ["00:00:00.123456789"],
    "duration": [str(NS)],
    "far_duration": [str(2**62)],
    "map": [[WHEN, 1]],
    "map_twice": [["a", 1], ["a", 2]],
    "struct": {"a": WHEN, "b": "/w=="},
    "decimal": ["1.50"],
    "bytes": ["/w=="],
    "no_number": {"a": None},
    "half": [0.5],
    "nulls": [None],
    "dictionary": [WHEN],
    "uuid": str(uuid.UUID(int=7)),
    "extension": [WHEN],
    "same": [["a", 1], ["a", 3]],
}


def read(text: str) -> Any:
    return json.loads(text) if text[0] in "[{" else text


class TestParquet:
    def test_columns_keep_their_types(self, tmp_path: Path) -> None:
        columns = {
            "n": pa.array([1, None, 3], pa.int16()),
            "big": pa.array([2**64 - 1, 0, 1], pa.uint64()),
            "price": pa.array([0.5, None, 1.0], pa.float32()),
            "flag": pa.array([True, False, None]),
            "tags": pa.array([["a"], [], None], pa.list_(pa.string())),
        }
        label = pa.array(["x", "y", None])
        named = {"url": [URL, None, "x.jpg"], "id": [1, 2, None]}
        path = write_parquet(tmp_path / "a.parquet", named | columns | {"label": label.dictionary_encode()})

        found = table_of(path)

        assert found["uri"].to_pylist() == [URL, "", f"{tmp_path}/x.jpg"]
        assert found["item_id"].to_pylist() == ["1", "2", "2"]
        kept = found.drop_columns(["item_index", "uri", "item_id"])
        assert kept.equals(pa.table(columns | {"source_label": label}))

    def test_what_json_cannot_tell_becomes_text(self, tmp_path: Path) -> None:
        columns = {
            "when": pa.array([datetime.datetime(2026, 1, 2, 3, 4, 5), None], pa.timestamp("s")),
            "day": [datetime.date(2026, 1, 2), None],
            "price": pa.array([decimal.Decimal("1.50"), None]),
            "took": pa.array([datetime.timedelta(seconds=5), None]),
            "half": pa.array([0.5, None], pa.float16()),
            "box": [{"x": 1, "y": [2, 3]}, None],
            "boxes": [[{"x": 1}], None],
            "wide": pa.array(["w", None], pa.large_string()),
        }
        path = write_parquet(tmp_path / "a.parquet", {"url": [URL, URL]} | columns)

        first, second = items(path)

        json.dumps(first)
        assert first["when"].startswith("2026-01-02 03:04:05")
        assert (first["day"], first["price"], first["half"]) == ("2026-01-02", "1.50", "0.5")
        assert json.loads(first["box"]) == {"x": 1, "y": [2, 3]}
        assert json.loads(first["boxes"]) == [{"x": 1}]
        assert first["wide"] == "w"
        assert set(second.values()) == {"1", URL, None}

    def test_nothing_that_a_column_may_hold_is_refused(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", {"url": [URL] * 2} | strange_columns())

        (_, first), (_, second) = ((row.pop("uri"), row) for row in items(path))

        first.pop("item_id")
        assert second.pop("item_id") == "1"
        assert {name: read(first[name]) for name in first} == EXPECTED
        assert {*second.values()} == {None}

    def test_pandas_makes_no_difference(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", {"url": [URL] * 2} | strange_columns())

        command = [sys.executable, "-c", WITHOUT_PANDAS, str(path)]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout) == items(path)

    @pytest.mark.parametrize("column", ["url", "id"])
    def test_a_name_may_be_anything_too(self, tmp_path: Path, column: str) -> None:
        path = tmp_path / "a.parquet"
        for name, values in strange_columns().items():
            write_parquet(path, {"url": [URL] * 2} | {column: values})
            options = {"id_column": "id"} if column == "id" else {}
            found = items(path, **options)[0]["item_id" if column == "id" else "uri"]
            assert isinstance(found, str), name

    def test_text_that_is_no_utf8_is_replaced(self, tmp_path: Path) -> None:
        bad = pa.array([b"a\xff", None]).view(pa.string())
        texts = pa.ListArray.from_arrays([0, 1, 2], bad)
        columns = {"text": bad, "texts": texts, "inside": pa.StructArray.from_arrays([bad], ["a"]), "id": bad}
        path = write_parquet(tmp_path / "a.parquet", {"url": [URL] * 2} | columns)

        found = table_of(path)

        found.validate(full=True)
        assert found["item_id"].to_pylist() == ["a\ufffd", "1"]
        assert found["text"].to_pylist() == ["a\ufffd", None]
        assert found["texts"].to_pylist() == [["a\ufffd"], [None]]
        assert json.loads(found["inside"][0].as_py()) == {"a": "a\ufffd"}
        assert uris(write_parquet(path, {"url": pa.array([b"/a\xff"])})) == ["/a\ufffd"]

    def test_images_in_the_table_as_hugging_face_writes_them(self, tmp_path: Path) -> None:
        image = [{"bytes": b"one", "path": "1.jpg"}, {"bytes": b"two", "path": None}, None]
        path = write_parquet(tmp_path / "a.parquet", {"image": image, "label": [4, 5, 6]})

        assert items(path) == [
            {"item_id": "1.jpg", "uri": f"{path}#0", "source_label": 4, INLINE_COLUMN: b"one"},
            {"item_id": "1", "uri": f"{path}#1", "source_label": 5, INLINE_COLUMN: b"two"},
            {"item_id": "2", "uri": f"{path}#2", "source_label": 6, INLINE_COLUMN: b""},
        ]

    def test_an_image_of_which_only_the_path_is_in_the_table_is_fetched(self, tmp_path: Path) -> None:
        values = [(None, "b/1.jpg"), (b"two", "2.jpg"), (None, "")]
        path = write_parquet(
            tmp_path / "a.parquet", {"image": [{"bytes": data, "path": name} for data, name in values]}
        )

        assert [(row["uri"], row[INLINE_COLUMN]) for row in items(path)] == [
            (f"{tmp_path}/b/1.jpg", None), (f"{path}#1", b"two"), (f"{path}#2", b""),
        ]  # fmt: skip

    def test_images_in_the_table_beside_their_urls_as_img2dataset_writes_them(self, tmp_path: Path) -> None:
        columns = {
            "url": [URL, URL], "key": ["000", "001"], "status": ["success", "failed_to_download"],
            "jpg": pa.array([b"one", None], pa.large_binary()), "mask": [b"m", b"m"],
        }  # fmt: skip
        path = write_parquet(tmp_path / "a.parquet", columns)

        assert items(path, id_column="key") == [
            {"item_id": "000", "uri": URL, "source_status": "success", INLINE_COLUMN: b"one"},
            {"item_id": "001", "uri": URL, "source_status": "failed_to_download", INLINE_COLUMN: None},
        ]

    def test_a_chosen_column_may_hold_the_images_or_their_urls(self, tmp_path: Path) -> None:
        columns = {"url": [URL], "jpg": [b"one"], "scan": [b"two"], "l": ["/x"]}
        path = write_parquet(tmp_path / "a.parquet", columns)

        assert items(path, url_column="scan")[0][INLINE_COLUMN] == b"two"
        assert items(path, url_column="l") == [{"item_id": "0", "uri": "/x", "url": URL}]

    def test_urls_as_bytes_are_urls(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", {"url": [URL.encode()]})

        assert items(path) == [{"item_id": "0", "uri": URL}]

    def test_a_large_row_group_comes_in_pieces(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", {"url": [f"/{n}" for n in range(30_000)]})

        assert [batch.num_rows for batch in open_source(str(path)).batches()] == [8192, 8192, 8192, 5424]
        assert [row["uri"] for row in items(path)] == [f"/{n}" for n in range(30_000)]

    def test_what_is_wrong_is_named(self, tmp_path: Path) -> None:
        bad = tmp_path / "bad.parquet"
        whole = write_parquet(bad, {"url": [f"/{n * 7919}" for n in range(5000)]}).read_bytes()
        damaged = whole[:100] + b"\xff" * 3900 + whole[4000:]
        for content in (whole[:-500], b"url\n/x.jpg\n", damaged):
            bad.write_bytes(content)
            message = problem(bad)
            assert message.startswith(f"{bad}: not a complete Parquet file: "), message
            assert "\n" not in message
        bad.write_bytes(b"")
        assert problem(bad) == f"{bad}: the file is empty"
        write_parquet(bad, {"url": pa.array([], pa.string())})
        assert problem(bad) == f"{bad}: the file has no rows"
        assert f"{bad}: no column named" in problem(write_parquet(bad, {"link": ["x"]}))


class TestBaseUri:
    @pytest.mark.parametrize(
        ("base", "full"),
        [
            ("s3://bucket/prefix/", "s3://bucket/prefix/"),
            ("s3://bucket/prefix", "s3://bucket/prefix/"),
            ("https://host/image?name=", "https://host/image?name="),
            ("/data", "/data/"),
        ],
    )
    @pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.parquet"])
    def test_relative_names_are_below_it(self, tmp_path: Path, base: str, full: str, name: str) -> None:
        names = ["a/1.jpg", "./a/1.jpg", URL, "/abs.jpg"]
        (tmp_path / "a.txt").write_text("\n".join(names))
        (tmp_path / "a.csv").write_text("\n".join(["key", *names]))
        write_jsonl(tmp_path / "a.jsonl", *({"key": key} for key in names))
        write_parquet(tmp_path / "a.parquet", {"s3_key": names})

        assert uris(tmp_path / name, base_uri=base) == [f"{full}a/1.jpg"] * 2 + [URL, "/abs.jpg"]
        description = open_source(str(tmp_path / name), ReadOptions(base_uri=base)).description
        assert description.options["base_uri"] == full

    def test_a_folder_counts_from_the_current_one(self, folder: Path) -> None:
        (folder / "a.txt").write_text("1.jpg\n")

        assert uris("a.txt", base_uri="images/new") == [f"{folder}/images/new/1.jpg"]

    def test_a_folder_has_none(self, tmp_path: Path) -> None:
        (tmp_path / "1.jpg").touch()

        assert "`base_uri=` applies to lists" in problem(tmp_path, base_uri="s3://b/")
