"""Sources that are read once and may pause: standard input, and what a Python program hands over."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from itertools import count, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from clipfleet.contract.parts import INLINE_COLUMN
from clipfleet.errors import SourceError
from clipfleet.sources import ReadOptions, Source, open_source, source_of
from clipfleet.sources.batches import MAX_ROWS
from clipfleet.sources.files import BY_NAME
from clipfleet.sources.handover import run_beside
from clipfleet.sources.iterable import IterableSource
from clipfleet.sources.stdin import StdinSource
from tests.support.doubles import PATIENCE_SECONDS, Clock
from tests.support.sources import items


class Pipe:
    """A pipe whose reading end is a source's standard input."""

    def __init__(self) -> None:
        self.reading, self._writing = os.pipe()

    def write(self, text: str | bytes) -> None:
        os.write(self._writing, text.encode() if isinstance(text, str) else text)

    def end(self) -> None:
        os.close(self._writing)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    """Half a second is over at once: a test waits for nothing."""
    monkeypatch.setattr("clipfleet.sources.stdin.PASS_ON_SECONDS", 0.001)
    pipe = Pipe()
    yield pipe
    os.close(pipe.reading)


def of_stdin(pipe: Pipe, content: str | bytes, **options: str) -> Source:
    pipe.write(content)
    pipe.end()
    return StdinSource(ReadOptions(**options), descriptor=pipe.reading)


def of_file(folder: Path, content: str) -> Source:
    (folder / "lines").write_text(content)
    with (folder / "lines").open() as file:
        return StdinSource(BY_NAME, descriptor=os.dup(file.fileno()), monotonic=Clock())


def stdin_problem(pipe: Pipe, content: str | bytes, **options: str) -> str:
    with pytest.raises(SourceError) as caught:
        list(of_stdin(pipe, content, **options).batches())
    return str(caught.value)


class TestStdin:
    def test_lines_are_urls_and_paths(self, pipe: Pipe) -> None:
        source = of_stdin(pipe, b"\xef\xbb\xbfhttps://a/1.jpg\r\n\n  b.jpg \n/c.jpg")

        assert [row["uri"] for row in items(source)] == ["https://a/1.jpg", f"{Path.cwd()}/b.jpg", "/c.jpg"]
        assert source.description.kind == "stdin"

    def test_the_base_of_relative_names(self, pipe: Pipe) -> None:
        source = of_stdin(pipe, "a/1.jpg\n", base_uri="s3://bucket/x")

        assert items(source) == [{"item_id": "0", "uri": "s3://bucket/x/a/1.jpg"}]

    def test_lines_of_json_have_the_columns_of_the_first_and_the_rest_as_json(self, pipe: Pipe) -> None:
        first, second = {"url": "/1", "id": "a", "n": 1}, {"url": "/2", "n": "two", "more": [1]}
        source = of_stdin(pipe, f"{json.dumps(first)}\n{json.dumps(second)}\n")

        assert items(source) == [
            {"item_id": "a", "uri": "/1", "n": 1, "other_fields": None},
            {"item_id": "1", "uri": "/2", "n": None, "other_fields": '{"more": [1], "n": "two"}'},
        ]

    def test_what_came_is_passed_on_while_nothing_more_comes(self, pipe: Pipe) -> None:
        pipe.write("/1.jpg\n/2.j")
        batches = StdinSource(BY_NAME, descriptor=pipe.reading).batches()

        assert next(batches)["uri"].to_pylist() == ["/1.jpg"]
        assert next(batches).num_rows == 0
        pipe.write("pg\n/3.jpg\n")
        assert next(batch for batch in batches if batch.num_rows)["uri"].to_pylist() == ["/2.jpg", "/3.jpg"]
        pipe.end()
        assert sum(batch.num_rows for batch in batches) == 0

    def test_many_lines_come_in_large_batches(self, tmp_path: Path) -> None:
        sizes = [batch.num_rows for batch in of_file(tmp_path, "/1\n" * 50_000).batches()]

        assert sum(sizes) == 50_000
        assert max(sizes) == MAX_ROWS
        assert len(sizes) < 20

    def test_a_long_line_in_many_pieces(self, tmp_path: Path) -> None:
        uri = "data:image/png;base64," + "A" * 3_000_000

        assert [row["uri"] for row in items(of_file(tmp_path, f"/1\n{uri}\n/2"))] == ["/1", uri, "/2"]

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("", "stdin: no input"),
            ("\n \n", "stdin: no input"),
            (b"/1\n\n/caf\xe9\n", "stdin:3: byte 5 of the line is not UTF-8"),
            (b"\x1f\x8b\x08 \xff\n", "looks like gzip"),
            ('{"url": "/1"}\n{"url"\n', "stdin:2: not a line of JSON"),
            ('{"url": "/1"}\n/2\n', "stdin:2: not a line of JSON"),
            ('{"link": "/1"}\n', "stdin: no column named url"),
        ],
    )
    def test_what_is_wrong_names_the_line(self, pipe: Pipe, content: str | bytes, words: str) -> None:
        assert words in stdin_problem(pipe, content)

    def test_an_endless_line(self, pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("clipfleet.sources.stdin.MAX_LINE_BYTES", 1000)

        assert "stdin:2: the line is longer than 1,000 bytes" in stdin_problem(pipe, "/1\n" + "x" * 5000)

    def test_one_that_is_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", None)

        with pytest.raises(SourceError, match="stdin: closed"):
            open_source("-")

    def test_what_cannot_be_read(self, tmp_path: Path) -> None:
        folder = os.open(tmp_path, os.O_RDONLY)
        for reason in ("Is a directory", "Bad file descriptor"):
            with pytest.raises(SourceError, match=f"stdin: cannot be read: {reason}"):
                StdinSource(BY_NAME, descriptor=folder)
            with suppress(OSError):
                os.close(folder)

    def test_columns_apply_to_json_only(self, pipe: Pipe) -> None:
        assert "`url_column=`" in stdin_problem(pipe, "/1.jpg\n", url_column="x")


class TestIterable:
    def test_all_kinds_in_one_list(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        source = source_of(
            [
                "https://a/1.jpg", "b.jpg", Path("c.jpg"), Path("/d.jpg"), b"picture",
                {"url": "e.jpg", "id": 7, "price": 1.5},
                {"bytes": bytearray(b"two"), "id": "x"}, {"id": "none"},
            ],
            BY_NAME,
        )  # fmt: skip

        assert [tuple(row.values()) for row in items(source)] == [
            ("0", "https://a/1.jpg", None, None),
            ("1", f"{tmp_path}/b.jpg", None, None),
            ("2", f"{tmp_path}/c.jpg", None, None),
            ("3", "/d.jpg", None, None),
            ("4", "#4", None, b"picture"),
            ("7", f"{tmp_path}/e.jpg", 1.5, None),
            ("x", "#6", None, b"two"),
            ("none", "", None, None),
        ]

    def test_bytes_are_an_image_also_where_others_have_theirs_under_another_name(self) -> None:
        source = source_of([b"0", {"image": b"1"}, {"bytes": b"2"}, {"image": b"3", "bytes": b""}], BY_NAME)

        assert [row[INLINE_COLUMN] for row in items(source)] == [b"0", b"1", b"2", b"3"]

    def test_a_column_of_a_data_frame_is_a_list_of_its_values(self) -> None:
        source = source_of(pandas.Series(["/a.jpg", "/b.jpg"]), BY_NAME)

        assert [row["uri"] for row in items(source)] == ["/a.jpg", "/b.jpg"]

    def test_values_of_a_program_become_values_of_json(self) -> None:
        values = {
            "url": "/1", "n": np.int64(3), "x": np.float32(0.5), "day": date(2026, 1, 2),
            "tags": {"a": (1, 2)}, "vector": np.array([1, 2]),
        }  # fmt: skip

        assert items(source_of([values], BY_NAME)) == [
            {
                "item_id": "0", "uri": "/1", "n": 3, "x": 0.5, "day": "2026-01-02", "tags": '{"a": [1, 2]}',
                "vector": "[1, 2]", INLINE_COLUMN: None,
            }
        ]  # fmt: skip

    def test_a_generator_is_streamed(self) -> None:
        numbers = count()
        endless = (f"/{number}.jpg" for number in numbers)
        batches = IterableSource(endless, BY_NAME, monotonic=Clock()).batches()

        assert next(numbers) == 1
        assert next(batches).num_rows == 512
        assert next(numbers) == 513

    def test_what_a_slow_generator_gave_is_passed_on(self, clock: Clock) -> None:
        def slow() -> Iterator[str]:
            for number in range(10):
                clock.now += 0.2
                yield f"/{number}.jpg"

        sizes = [batch.num_rows for batch in IterableSource(slow(), BY_NAME, monotonic=clock).batches()]

        assert sum(sizes) == 10
        assert max(sizes) <= 4

    def test_a_generator_may_hand_over_anything_after_its_first_item(self) -> None:
        given = iter([{"image_url": "/1", "n": 1}, "/2", b"3", {"image_url": "/4", "m": 2}])

        assert [tuple(row.values()) for row in items(source_of(given, BY_NAME))] == [
            ("0", "/1", 1, None, None),
            ("1", "/2", None, None, None),
            ("2", "#2", None, None, b"3"),
            ("3", "/4", None, '{"m": 2}', None),
        ]

    def test_large_images_make_small_batches(self) -> None:
        source = source_of((b"x" * 1_000_000 for _ in range(100)), BY_NAME)

        assert max(batch.num_rows for batch in source.batches()) < 40

    def test_fields_that_are_chosen(self) -> None:
        source = source_of([{"scan": b"1", "sku": 5}], ReadOptions(url_column="scan", id_column="sku"))

        assert items(source) == [{"item_id": "5", "uri": "#0", INLINE_COLUMN: b"1"}]

    def test_the_description_of_a_list_tells_its_content(self) -> None:
        dicts = [[{"url": "/1", "n": number}] for number in (1, 2)]
        lists: list[list[Any]] = [["/1"], ["/2"], ["/1", "/2"], [b"/1"], *dicts]
        descriptions = [source_of(one, BY_NAME).description for one in lists]

        assert len({description.model_dump_json() for description in descriptions}) == len(lists)

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ([], "there are no items"),
            (iter(()), "there are no items"),
            (b"picture", "put it into a list"),
            ({"url": "/1"}, "put it into a list"),
            (5, "put it into a list"),
            ([None], "item 0 is invalid"),
            (["/1", 5], "item 1 is invalid"),
            ([{"url": "/1", "x": object()}], "item 0 is invalid: a value of type object cannot be stored"),
            ([{"link": "/1"}], "no column named url"),
            (pandas.DataFrame({"a": [1]}), "no column named url"),
        ],
    )
    def test_what_cannot_be_used_is_named(self, source: Any, words: str) -> None:
        with pytest.raises(SourceError, match=words):
            list(source_of(source, BY_NAME).batches())


def breaking(error: BaseException) -> Iterator[str]:
    yield "/1.jpg"
    raise error


class TestHandover:
    def test_the_iterator_runs_in_the_callers_thread_and_its_pauses_hold_nothing_back(self) -> None:
        threads: list[threading.Thread] = []
        came: list[str] = []
        has_come = threading.Event()

        def pausing() -> Iterator[str]:
            yield "/1.jpg"
            yield "/2.jpg"
            assert has_come.wait(PATIENCE_SECONDS), "the items are held back"
            threads.append(threading.current_thread())
            yield "/3.jpg"

        def run(source: Source) -> None:
            threads.append(threading.current_thread())
            for batch in source.batches():
                came.extend(batch["uri"].to_pylist())
                if len(came) == 2:
                    has_come.set()

        run_beside(IterableSource(pausing(), BY_NAME), run)

        assert came == ["/1.jpg", "/2.jpg", "/3.jpg"]
        assert threads[1] is threading.main_thread() is not threads[0]

    def test_many_items_come_in_large_batches_and_few_are_held(self) -> None:
        taken = 0
        sizes: list[int] = []

        def fast() -> Iterator[str]:
            nonlocal taken
            for taken in range(1, 50_001):
                yield f"/{taken}"

        def run(source: Source) -> None:
            for batch in source.batches():
                assert taken - sum(sizes) <= 2 * MAX_ROWS + 1
                sizes.append(batch.num_rows)

        run_beside(IterableSource(fast(), BY_NAME), run)

        assert sum(sizes) == 50_000
        assert max(sizes) == MAX_ROWS

    @pytest.mark.parametrize("error", [RuntimeError("the cursor broke"), KeyboardInterrupt()])
    def test_what_the_iterator_raises_ends_both(self, error: BaseException) -> None:
        seen: list[BaseException] = []

        def run(source: Source) -> None:
            with pytest.raises(type(error)) as caught:
                list(source.batches())
            seen.append(caught.value)
            raise caught.value

        with pytest.raises(type(error)):
            run_beside(IterableSource(breaking(error), BY_NAME), run)
        assert seen == [error]

    def test_a_work_that_waits_for_something_else_is_told_of_ctrl_c(self) -> None:
        is_left = threading.Event()

        def run(source: Source) -> None:
            next(source.batches())
            assert is_left.wait(PATIENCE_SECONDS), "it would have waited on"

        with pytest.raises(KeyboardInterrupt):
            run_beside(IterableSource(breaking(KeyboardInterrupt()), BY_NAME), run, is_left.set)

    def test_an_end_before_the_end_stops_the_iterator(self) -> None:
        def run(source: Source) -> None:
            next(source.batches())
            raise SourceError("refused")

        with pytest.raises(SourceError, match="refused"):
            run_beside(IterableSource(repeat("/1.jpg"), BY_NAME), run)
