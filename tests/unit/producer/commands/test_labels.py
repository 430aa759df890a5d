"""What `--labels` may be: names between commas, or a file with one per line."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfleet.commands.submitting import read_labels
from clipfleet.errors import UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestList:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("cat,dog", ["cat", "dog"]),
            ("cat", ["cat"]),
            (" cat ,  black dog ,", ["cat", "black dog"]),
            (",,cat,,dog,", ["cat", "dog"]),
            ("cat\ndog\r\n", ["cat", "dog"]),  # --labels "$(cat names)"
            ("żółw,犬", ["żółw", "犬"]),
            ("a/b,c.d", ["a/b", "c.d"]),
            ("v1.0", ["v1.0"]),
            ("{}", ["{}"]),
        ],
    )
    def test_names(self, text: str, names: list[str]) -> None:
        assert read_labels(text) == names

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ('"cat, sitting",dog', ["cat, sitting", "dog"]),
            ('dog, "cat, sitting" ', ["dog", "cat, sitting"]),
            ('"a ""big"" dog",cat', ['a "big" dog', "cat"]),
            ('5" pipe,cat', ['5" pipe', "cat"]),
            ("'cat','dog'", ["'cat'", "'dog'"]),  # the shell's quotes are not ours
            ('" cat "', ["cat"]),
        ],
    )
    def test_double_quotes_keep_a_comma_inside_a_name(self, text: str, names: list[str]) -> None:
        assert read_labels(text) == names

    @pytest.mark.parametrize("text", ['"cat,dog', '"cat" x,dog'])
    def test_a_quote_that_is_not_closed_is_told(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"^--labels: .*quote"):
            read_labels(text)

    def test_names_that_appear_twice_are_left_to_the_label_set(self) -> None:
        assert read_labels("cat,dog,cat") == ["cat", "dog", "cat"]

    @pytest.mark.parametrize("text", ["", " ", ",", " , ,", "\n", '""', '"",""'])
    def test_no_name_at_all_is_told_with_the_ways_to_give_some(self, text: str) -> None:
        with pytest.raises(UsageError, match="comma-separated names, or a file"):
            read_labels(text)

    def test_a_name_as_long_as_no_file_can_be_called(self) -> None:
        assert read_labels("x" * 5000) == ["x" * 5000]

    def test_a_folder_of_the_same_name_does_not_matter(self, folder: Path) -> None:
        (folder / "cat").mkdir()

        assert read_labels("cat") == ["cat"]


class TestFile:
    @pytest.mark.parametrize("name", ["names.txt", "NAMES.TXT", "names.csv", "names.lst", "names", "a,b.txt"])
    def test_one_name_per_line(self, folder: Path, name: str) -> None:
        (folder / name).write_text("cat\ndog\n")

        assert read_labels(name) == ["cat", "dog"]
        assert read_labels(str(folder / name)) == ["cat", "dog"]

    @pytest.mark.parametrize(
        "content",
        [b"cat\r\nblack dog\r\n", b"\xef\xbb\xbfcat\nblack dog", b"\n\n  cat  \n\t\nblack dog\n\n"],
        ids=["windows", "byte order mark", "blanks"],
    )
    def test_blank_lines_and_blanks_around_a_name_are_left_out(self, folder: Path, content: bytes) -> None:
        (folder / "names.txt").write_bytes(content)

        assert read_labels("names.txt") == ["cat", "black dog"]

    def test_in_a_file_commas_and_quotes_belong_to_the_name(self, folder: Path) -> None:
        (folder / "names.txt").write_text('cat, sitting\n"dog"\n')

        assert read_labels("names.txt") == ["cat, sitting", '"dog"']

    @pytest.mark.parametrize("name", ["missing.txt", "sub/missing.csv", "missing.LST"])
    def test_one_that_is_not_there_is_no_name(self, name: str) -> None:
        with pytest.raises(UsageError, match=rf"^--labels {name}: No such file"):
            read_labels(name)

    def test_a_folder_where_a_file_is_meant(self, folder: Path) -> None:
        (folder / "names.txt").mkdir()

        with pytest.raises(UsageError, match=r"^--labels names\.txt: Is a directory"):
            read_labels("names.txt")

    @pytest.mark.parametrize("content", ["cat\n".encode("utf-16"), b"\x89PNG\xff"])
    def test_another_encoding_is_told(self, folder: Path, content: bytes) -> None:
        (folder / "names.txt").write_bytes(content)

        with pytest.raises(UsageError, match=r"^--labels names\.txt: not UTF-8"):
            read_labels("names.txt")

    @pytest.mark.parametrize("content", ["", "\n \n"])
    def test_one_without_names_is_told(self, folder: Path, content: str) -> None:
        (folder / "names.txt").write_text(content)

        with pytest.raises(UsageError, match=r"'names\.txt' contains no label"):
            read_labels("names.txt")
