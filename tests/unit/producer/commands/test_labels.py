"""What `--labels` may be: names between commas, or a file with one per line."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfleet.commands.submitting import chosen_label_sets, read_labels
from clipfleet.errors import UsageError

pytestmark = pytest.mark.usefixtures("folder")


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
            ("cat,dog,cat", ["cat", "dog", "cat"]),  # refused by the label set
            ("x" * 5000, ["x" * 5000]),  # no file can be called so
            ('"cat, sitting",dog', ["cat, sitting", "dog"]),
            ('dog, "cat, sitting" ', ["dog", "cat, sitting"]),
            ('"a ""big"" dog",cat', ['a "big" dog', "cat"]),
            ('5" pipe,cat', ['5" pipe', "cat"]),
            ("'cat','dog'", ["'cat'", "'dog'"]),  # the shell's quotes are not ours
            ('" cat "', ["cat"]),
        ],
    )
    def test_names(self, text: str, names: list[str]) -> None:
        assert read_labels(text) == names

    @pytest.mark.parametrize("text", ['"cat,dog', '"cat" x,dog'])
    def test_a_quote_that_is_not_closed_is_told(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"^--labels: .*quote"):
            read_labels(text)

    @pytest.mark.parametrize("text", [",", " , ,", '""', '"",""'])
    def test_no_name_at_all_is_told_with_the_ways_to_give_some(self, text: str) -> None:
        with pytest.raises(UsageError, match="comma-separated names, or a file"):
            read_labels(text)

    @pytest.mark.parametrize("text", ["", " ", "\n"])
    def test_an_empty_value_is_told_as_such(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"^--labels is empty: give comma-separated names, or a file"):
            read_labels(text)

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
        ("content", "names"),
        [
            (b"cat\r\nblack dog\r\n", ["cat", "black dog"]),
            (b"\xef\xbb\xbfcat\nblack dog", ["cat", "black dog"]),
            (b"\n\n  cat  \n\t\nblack dog\n\n", ["cat", "black dog"]),
            (b'cat, sitting\n"dog"\n', ["cat, sitting", '"dog"']),
        ],
        ids=["windows", "byte order mark", "blanks", "commas and quotes"],
    )
    def test_lines(self, folder: Path, content: bytes, names: list[str]) -> None:
        (folder / "names.txt").write_bytes(content)

        assert read_labels("names.txt") == names

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("cat\n".encode("utf-16"), r"^--labels names\.txt: not UTF-8"),
            (b"\x89PNG\xff", r"^--labels names\.txt: not UTF-8"),
            (b"", r"'names\.txt' contains no label"),
            (b"\n \n", r"'names\.txt' contains no label"),
        ],
    )
    def test_what_is_wrong_is_told(self, folder: Path, content: bytes, problem: str) -> None:
        (folder / "names.txt").write_bytes(content)

        with pytest.raises(UsageError, match=problem):
            read_labels("names.txt")

    def test_a_folder_where_a_file_is_meant(self, folder: Path) -> None:
        (folder / "names.txt").mkdir()

        with pytest.raises(UsageError, match=r"^--labels names\.txt: Is a directory"):
            read_labels("names.txt")

    @pytest.mark.parametrize("name", ["missing.txt", "sub/missing.csv", "missing.LST"])
    def test_one_that_is_not_there_is_no_name(self, name: str) -> None:
        with pytest.raises(UsageError, match=rf"^--labels {name}: No such file"):
            read_labels(name)


class TestWithHeads:
    def test_a_head_does_without_labels(self) -> None:
        assert chosen_label_sets(None, [], [], has_heads=True) == ()
        assert chosen_label_sets("cat,dog", [], [], has_heads=True) == chosen_label_sets("cat,dog", [], [])

    def test_without_either_both_ways_are_told(self) -> None:
        with pytest.raises(UsageError, match=r"^no labels: give --labels .* or a --head$"):
            chosen_label_sets(None, [], [])

    @pytest.mark.parametrize(
        ("option", "values"), [("--template", {}), ("--multi", {"multi": True}), ("--none", {"none": True})]
    )
    def test_options_of_labels_need_some(self, option: str, values: dict[str, bool]) -> None:
        templates = ["{}"] if option == "--template" else []

        with pytest.raises(UsageError, match=f"^{option} is for labels"):
            chosen_label_sets(None, [], templates, has_heads=True, **values)
