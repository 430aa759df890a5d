"""What each kind of source yields, and what it says when it cannot."""

from __future__ import annotations

import csv as stdlib_csv
import io
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipfleet.errors import SourceError
from clipfleet.sources import ReadOptions, open_source, walk
from clipfleet.sources.batches import in_batches
from tests.support.sources import ids, items, problem, uris


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def assert_problem(source: str | Path, *words: str, **options: str) -> None:
    message = problem(source, **options)
    assert [word for word in words if word not in message] == [], message


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class TestFolder:
    def test_images_of_all_folders_come_sorted_by_path_with_their_path_as_id(self, tmp_path: Path) -> None:
        names = ["b.jpg", "a/2.png", "a/10.webp", "a.jpg", "a/x/deep.gif", "zz/1.bmp"]
        touch(tmp_path, *names)

        assert ids(tmp_path) == sorted(names)
        assert uris(tmp_path) == [f"{tmp_path}/{name}" for name in sorted(names)]

    def test_the_extension_decides_whatever_its_case(self, tmp_path: Path) -> None:
        wanted = [f"x.{end}" for end in ["jpg", "JPEG", "jpe", "png", "WebP", "gif", "bmp", "tif", "TIFF"]]
        touch(tmp_path, *wanted, "notes.txt", "jpg", "movie.mp4", "x.jpg.part", "svg.svg")

        assert ids(tmp_path) == sorted(wanted)

    def test_hidden_files_hidden_folders_and_linked_folders_are_skipped(self, tmp_path: Path) -> None:
        touch(tmp_path, "in/a.jpg", "in/.hidden.jpg", "in/.cache/b.jpg", "elsewhere/c.jpg")
        (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "in/circle").symlink_to(tmp_path / "in")

        assert ids(tmp_path / "in") == ["a.jpg"]

    def test_a_linked_file_counts_and_a_dangling_link_does_not_vanish(self, tmp_path: Path) -> None:
        touch(tmp_path, "in/a.jpg", "other.jpg")
        (tmp_path / "in/link.jpg").symlink_to(tmp_path / "other.jpg")
        (tmp_path / "in/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
        (tmp_path / "in/self.jpg").symlink_to("self.jpg")
        os.mkfifo(tmp_path / "in/pipe.jpg")

        assert ids(tmp_path / "in") == ["a.jpg", "gone.jpg", "link.jpg", "self.jpg"]

    def test_the_folder_may_be_a_relative_link(self, folder: Path) -> None:
        touch(folder, "real/a.jpg")
        (folder / "link").symlink_to("real")

        assert uris("./link/") == [f"{folder}/link/a.jpg"]
        assert open_source("link").description == open_source(f"{folder}/link/").description

    def test_a_name_that_is_not_utf8_becomes_a_file_uri_that_leads_to_the_file(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9 100%.jpg")
        touch(tmp_path, name, "plain 100%.jpg", "\u5199\u771f.jpg")

        found = {row["item_id"]: row["uri"] for row in items(tmp_path)}

        assert found["plain 100%.jpg"] == f"{tmp_path}/plain 100%.jpg"
        assert found["\u5199\u771f.jpg"] == f"{tmp_path}/\u5199\u771f.jpg"
        assert found["caf%E9%20100%25.jpg"] == f"file://{tmp_path}/caf%E9%20100%25.jpg"

    def test_a_folder_whose_name_is_not_utf8_can_be_described(self, tmp_path: Path) -> None:
        folder = tmp_path / os.fsdecode(b"\xff")
        touch(folder, "a.jpg")

        description = open_source(str(folder)).description

        assert description.uri == f"file://{tmp_path}/%FF"
        assert description.model_dump_json()
        assert items(folder) == [{"item_id": "a.jpg", "uri": f"file://{tmp_path}/%FF/a.jpg"}]
        assert "%FF" in problem(folder / "missing")

    def test_strange_names_are_kept(self, tmp_path: Path) -> None:
        names = ["new\nline.jpg", "star*.jpg", "[1].jpg", "back\\slash.jpg", " blank .jpg", "a:b.jpg"]
        touch(tmp_path, *names)

        assert ids(tmp_path) == sorted(names)

    def test_without_images_the_error_says_where_and_what_was_looked_for(self, tmp_path: Path) -> None:
        touch(tmp_path, "notes.md")

        assert_problem(tmp_path, str(tmp_path), ".jpg", ".webp", "hidden")

    def test_a_folder_that_cannot_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
        scandir = os.scandir

        def refusing(path: Path) -> Any:
            if Path(path).name == "b":
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(walk.os, "scandir", refusing)

        assert problem(tmp_path) == f"{tmp_path}/b: cannot be read: Permission denied"

    def test_the_first_batch_comes_early(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path, *(f"{folder:02d}/{number:03d}.jpg" for folder in range(20) for number in range(100)))
        read: list[str] = []
        scandir = os.scandir
        monkeypatch.setattr(walk.os, "scandir", lambda path: read.append(str(path)) or scandir(path))

        batches = open_source(str(tmp_path)).batches()
        assert next(batches).num_rows == 512

        assert len(read) == 8  # the root, at first for its kind, and six folders
        assert 512 + sum(batch.num_rows for batch in batches) == 2000

    def test_very_many_names_come_sorted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(walk, "_RUN", 7)
        monkeypatch.setattr(walk, "_PACK", 3)
        names = [f"{number * 37 % 100:02d}.jpg" for number in range(100)]
        touch(tmp_path, *names, "50/x.jpg")

        assert ids(tmp_path) == sorted([*names, "50/x.jpg"])


class TestGlob:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        touch(tmp_path, "a/1.jpg", "a/2.png", "a/b/3.jpg", "a/b/c/4.jpg", "d/1.jpg", "top.jpg", "a/.h/5.jpg")
        touch(tmp_path, "a/.hidden.jpg", "notes")
        return tmp_path

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("*.jpg", "top.jpg"),
            ("*", "notes top.jpg"),
            ("*/*.jpg", "a/1.jpg d/1.jpg"),
            ("**/*.jpg", "a/1.jpg a/b/3.jpg a/b/c/4.jpg d/1.jpg top.jpg"),
            ("a/**/*.jpg", "1.jpg b/3.jpg b/c/4.jpg"),
            ("a/**", "1.jpg 2.png b/3.jpg b/c/4.jpg"),
            ("**/b/**/*.jpg", "a/b/3.jpg a/b/c/4.jpg"),
            ("**/**/3.jpg", "a/b/3.jpg"),
            ("**/*/**/*.jpg", "a/1.jpg a/b/3.jpg a/b/c/4.jpg d/1.jpg"),
            ("[ad]/?.jpg", "a/1.jpg d/1.jpg"),
            ("[!a]/1.jpg", "d/1.jpg"),
            ("a/.*.jpg", ".hidden.jpg"),
            ("a/.h/*", "5.jpg"),
        ],
    )
    def test_it_matches_like_a_shell_once_and_sorts(self, tree: Path, pattern: str, expected: str) -> None:
        assert ids(tree / pattern) == expected.split()

    @pytest.mark.parametrize(
        ("pattern", "words"),
        [
            ("*.gif", "/*.gif: no file matches this pattern"),
            ("nowhere/*.jpg", "/nowhere: cannot be read"),
            ("*.parquet", "submit lists one by one"),
            ("data/**/*.csv.gz", "submit lists one by one"),
            ("[ab].txt", "submit lists one by one"),
        ],
    )
    def test_what_is_wrong_is_named(self, tree: Path, pattern: str, words: str) -> None:
        assert words in problem(tree / pattern)

    def test_linked_folders_are_entered_by_name_but_not_by_any_depth(self, tree: Path) -> None:
        (tree / "link").symlink_to(tree / "a")
        (tree / "a/circle").symlink_to(tree)

        assert ids(tree / "l*/1.jpg") == ["link/1.jpg"]
        assert ids(tree / "**/1.jpg") == ["a/1.jpg", "d/1.jpg"]

    def test_a_relative_pattern_is_made_absolute(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tree)
        description = open_source("a/*.jpg").description

        assert uris("a/*.jpg") == [f"{tree}/a/1.jpg"]
        assert (description.uri, description.kind) == (f"{tree}/a/*.jpg", "glob")

    def test_what_exists_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path, "set[1]/a[1].jpg", "set[1]/a1.jpg", "set1/wrong.jpg")

        assert ids(tmp_path / "set[1]") == ["a1.jpg", "a[1].jpg"]
        assert ids(tmp_path / "set[1]/a[1].jpg") == ["a[1].jpg"]
        assert ids(tmp_path / "set[1]/*.jpg") == ["a1.jpg", "a[1].jpg"]
        monkeypatch.chdir(tmp_path / "set[1]")
        assert ids("*1.jpg") == ["a1.jpg"]

    def test_one_image_is_a_source_of_one_item(self, tmp_path: Path) -> None:
        touch(tmp_path, "x/Photo.JPG", "x/.hidden.jpg")

        assert items(tmp_path / "x/Photo.JPG") == [{"item_id": "Photo.JPG", "uri": f"{tmp_path}/x/Photo.JPG"}]
        assert ids(tmp_path / "x/.hidden.jpg") == [".hidden.jpg"]


class TestTxt:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("https://a/1\n\n  s3://b/2  \n\t\nhttp://a/3", ["https://a/1", "s3://b/2", "http://a/3"]),
            (b"\xef\xbb\xbfhttps://a/1\r\n\r\nhttps://a/2\r\n", ["https://a/1", "https://a/2"]),
            ("https://a/\u2028x\u0085y\x0cz\n/b\n", ["https://a/\u2028x\u0085y\x0cz", "/b"]),
        ],
        ids=["blanks", "byte order mark and Windows line ends", "only line feeds end a line"],
    )
    def test_lines(self, tmp_path: Path, content: str | bytes, expected: list[str]) -> None:
        path = write(tmp_path / "list.TXT", content)

        assert items(path) == [{"item_id": str(number), "uri": uri} for number, uri in enumerate(expected)]

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", ": the file is empty"),
            (b"\n \n\r\n", ": the file holds only blank lines"),
            (b"https://a/1\n\nhttps://a/caf\xe9\n", ":3: byte 14 of the line is not UTF-8"),
            ("https://a/1\n".encode("utf-16"), "looks like UTF-16"),
        ],
    )
    def test_what_is_wrong_names_file_and_line(self, tmp_path: Path, content: bytes, words: str) -> None:
        assert_problem(write(tmp_path / "list.txt", content), f"{tmp_path}/list.txt:", words)

    def test_relative_paths_count_from_the_folder_of_the_file(self, tmp_path: Path) -> None:
        lines = {
            "a.jpg": f"{tmp_path}/a.jpg",
            "./sub/a b.jpg": f"{tmp_path}/sub/a b.jpg",
            "../up.jpg": f"{tmp_path}/../up.jpg",
            "/abs/c.jpg": "/abs/c.jpg",
            "file:///abs/d%20e.jpg": "file:///abs/d%20e.jpg",
            "https://user:pass@host/x.jpg?a=b#c": "https://user:pass@host/x.jpg?a=b#c",
            "HTTPS://HOST/x.jpg": "HTTPS://HOST/x.jpg",
            "data:image/png;base64,AAAA": "data:image/png;base64,AAAA",
            "a:b.jpg": f"{tmp_path}/a:b.jpg",
            "caf\u00e9 100%.jpg": f"{tmp_path}/caf\u00e9 100%.jpg",
        }
        path = write(tmp_path / "list.txt", "\n".join(lines))

        assert uris(path) == list(lines.values())

    def test_relative_paths_in_a_folder_whose_name_is_not_utf8(self, tmp_path: Path) -> None:
        folder = tmp_path / os.fsdecode(b"\xff")
        folder.mkdir()
        path = write(folder / "list.txt", "a b.jpg\nhttps://a/1.jpg\n")

        assert uris(path) == [f"file://{tmp_path}/%FF/a%20b.jpg", "https://a/1.jpg"]

    def test_an_endless_line_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("clipfleet.sources.lists.lines.MAX_LINE_BYTES", 1000)
        path = write(tmp_path / "list.txt", "ok.jpg\n" + "x" * 5000)

        assert f"{path}:2: the line is longer than 1,000 bytes" in problem(path)

    def test_a_file_that_changes_while_it_is_read_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "list.txt", "https://a/1.jpg\n" * 20_000)
        batches = open_source(str(path)).batches()
        next(batches)

        with path.open("a") as file:
            file.write("https://a/2.jpg\n")

        with pytest.raises(SourceError, match="changed while it was read"):
            list(batches)

    def test_the_description_tells_another_content(self, tmp_path: Path) -> None:
        path = write(tmp_path / "list.txt", "https://a/1.jpg\n")
        before = open_source(str(path)).description

        os.utime(path, ns=(0, 1_700_000_000_123_456_789))
        after = open_source(str(path)).description

        assert before != after
        assert after.options == {"size": "16", "mtime_ns": "1700000000123456789"}
        assert (after.kind, after.uri) == ("txt", str(path))

    def test_batches_grow_and_the_index_goes_on(self, tmp_path: Path) -> None:
        path = write(tmp_path / "list.txt", "/1.jpg\n" * 30_000)

        sizes = [batch.num_rows for batch in open_source(str(path)).batches()]

        assert sizes == [512, 1024, 2048, 4096, 8192, 8192, 5936]
        assert ids(path) == [str(number) for number in range(30_000)]


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8)
DATA_URL = "data:image/png;base64," + "A" * 3_000_000


def csv_row(item_id: str, uri: str, **columns: str) -> dict[str, str]:
    return {"item_id": item_id, "uri": uri, **columns}


CSV: dict[str, tuple[str, list[dict[str, str]]]] = {
    "exact fields": (
        "id,url,zip,note\n007,/1,01234, spaced \n8,/2,,NULL\n",
        [csv_row("007", "/1", zip="01234", note=" spaced "), csv_row("8", "/2", zip="", note="NULL")],
    ),
    "quotes": (
        '"url",note\r\n"/1,2","a ""big""\r\ncat"\r\n/x,y\r\n',
        [csv_row("0", "/1,2", note='a "big"\r\ncat'), csv_row("1", "/x", note="y")],
    ),
    "an image as a data URL": (f'url,n\n"{DATA_URL}",1\n', [csv_row("0", DATA_URL, n="1")]),
    "byte order mark": ("\ufeffurl\n/1\n", [csv_row("0", "/1")]),
    "order of names": ("path,url,image_id,id\np,/1,i,j\n", [csv_row("j", "/1", path="p", image_id="i")]),
    "our names are renamed": (
        "url,uri,label,Label\n/1,u,cat,L\n",
        [csv_row("0", "/1", source_uri="u", source_label="cat", Label="L")],
    ),
    "an empty URL is a row": ("url,n\n,1\n  ,2\n", [csv_row("0", "", n="1"), csv_row("1", "", n="2")]),
    "blank lines are none": ('url\n\n/1\n""\n\n', [csv_row("0", "/1"), csv_row("1", "")]),
    "no name": (",url\n0,/1\n", [csv_row("0", "/1", column_1="0")]),
}


class TestCsv:
    @pytest.mark.parametrize(("content", "expected"), CSV.values(), ids=CSV)
    def test_rows(self, tmp_path: Path, content: str, expected: list[dict[str, str]]) -> None:
        assert items(write(tmp_path / "a.csv", content)) == expected

    def test_one_column_may_be_url_and_id(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "key,x\n/a/1.jpg,2\n")

        assert items(path, id_column="key") == [csv_row("/a/1.jpg", "/a/1.jpg", x="2")]

    @pytest.mark.parametrize("name", ["url", "URI", "image_url", "Image_Path", "path", "key", "s3_key"])
    def test_usual_names_of_the_url_column(self, tmp_path: Path, name: str) -> None:
        path = write(tmp_path / "a.csv", f"other,{name}\nx,https://a/1.jpg\n")

        assert items(path) == [{"item_id": "0", "uri": "https://a/1.jpg", "other": "x"}]
        assert open_source(str(path)).description.options["url_column"] == name

    def test_columns_that_are_chosen(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "url,Link,SKU,id\nu,https://a/1.jpg,s,i\n")
        chosen = {"url_column": "link", "id_column": "SKU"}

        assert items(path, **chosen) == [{"item_id": "s", "uri": "https://a/1.jpg", "url": "u", "id": "i"}]
        options = open_source(str(path), ReadOptions(**chosen)).description.options
        assert {name: options[name] for name in chosen} == {"url_column": "Link", "id_column": "SKU"}
        assert options != open_source(str(path)).description.options

    @pytest.mark.parametrize("option", ["url_column", "id_column"])
    def test_a_chosen_column_that_is_not_there(self, tmp_path: Path, option: str) -> None:
        path = write(tmp_path / "a.csv", "url,name\nhttps://a/1.jpg,x\n")

        assert_problem(path, "'nope'", "url, name", f"`{option}=`", **{option: "nope"})

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("", "a.csv: the file is empty"),
            ("\n\n", "a.csv: no header row"),
            ("url,name\n", "a.csv: the file has a header but no rows"),
            ("url,label,source_label\na,b,c\n", "a.csv:1: two columns would be named 'source_label'"),
            ("link,name\na,x\n", "a.csv:1: no column named url, uri,"),
            ("url,name,name\na,b,c\n", "a.csv:1: column 'name' appears twice"),
            ('url,name\na,"x\ny"\n\nb,c\nd\n', "a.csv:6: the row has 1 field, the header names 2 columns"),
            ("url,name\na,b,c\n", "a.csv:2: the row has 3 fields"),
            ('url,name\na,b\na,"never closed\nb,c\n', "a.csv:3: not a well-formed row"),
            ('url,name\na,"' + "x" * 200_000, "a.csv:2: not a well-formed row"),
            ('url,name\na,"b"c\n', "a.csv:2: not a well-formed row"),
            (b"url,name\na,\xff\n", "a.csv:2: byte 3 of the line is not UTF-8"),
        ],
    )
    def test_what_is_wrong_names_file_and_line(self, tmp_path: Path, content: Any, words: str) -> None:
        assert f"{tmp_path}/{words}" in problem(write(tmp_path / "a.csv", content))

    def test_a_mistake_far_down_comes_after_the_rows_before_it(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "url,n\n" + "a.jpg,1\n" * 600 + "b.jpg\n")
        batches = open_source(str(path)).batches()

        assert next(batches).num_rows == 512
        with pytest.raises(SourceError, match=r"a\.csv:602: the row has 1 field, the header names 2 columns"):
            list(batches)

    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(rows=st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=30))
    def test_what_the_csv_module_writes_comes_back(self, tmp_path: Path, rows: list[tuple[str, str]]) -> None:
        text = io.StringIO()
        stdlib_csv.writer(text, quoting=stdlib_csv.QUOTE_ALL).writerows([("url", "note"), *rows])
        path = write(tmp_path / "a.csv", text.getvalue())

        assert [row["note"] for row in items(path)] == [note for _, note in rows]


class TestChoice:
    def test_a_folder_wins_over_its_suffix(self, tmp_path: Path) -> None:
        touch(tmp_path, "odd.csv/a.jpg")

        assert ids(tmp_path / "odd.csv") == ["a.jpg"]

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("nowhere.csv", ["/nowhere.csv: does not exist"]),
            ("data.feather", ["data.feather", ".csv", ".txt", "folder"]),
            ("list", ["list", ".csv", ".txt", "folder"]),
            ("pipe.txt", ["neither a folder nor a regular file"]),
            ("https://u:pw@a/list.txt?x=1", ["https://a/list.txt?x=1: a list", "download it"]),
            ("http://a/b/SET.parquet", ["download it"]),
            ("http://a/00000.tar", ["download it"]),
            ("http://[::1", ["http://[::1: not a valid URL"]),
            ("gs://bucket/prefix/", ["unsupported URL scheme 'gs'; use http, https, s3, data or file"]),
            ("file:///nowhere/x", ["/nowhere/x: does not exist"]),
            ("", ["empty"]),
            ("  ", ["empty"]),
            ("x" * 5000, ["too long"]),
        ],
    )
    def test_what_is_no_source(self, folder: Path, source: str, words: list[str]) -> None:
        touch(folder, "data.feather", "list")
        os.mkfifo("pipe.txt")

        assert_problem(source, *words)

    @pytest.mark.parametrize("option", ["url_column", "id_column"])
    @pytest.mark.parametrize("source", ["{folder}", "https://a/1.jpg", "data:,x"])
    def test_column_options_apply_to_tables_only(self, tmp_path: Path, source: str, option: str) -> None:
        touch(tmp_path, "a.jpg")

        assert_problem(source.format(folder=tmp_path), "`url_column=`", **{option: "x"})

    def test_the_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        touch(tmp_path, "images/a.jpg")

        assert uris("~/images") == [f"{tmp_path}/images/a.jpg"]


def test_lists_are_cut_without_reading_ahead() -> None:
    taken: list[int] = []
    batches = in_batches(taken.append(number) or number for number in range(10_000))  # type: ignore[func-returns-value]

    assert len(next(batches)) == 512
    assert len(taken) == 512
