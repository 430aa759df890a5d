"""Tar shards as a source: whose image it is, what is carried with it, which bytes are its own."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from clipfleet.contract.tar_member import tar_member
from clipfleet.errors import SourceError
from clipfleet.sources import open_source
from clipfleet.sources.walk import expand_braces
from tests.support.images import encoded, make_image
from tests.support.shards import img2dataset_shard, tar_bytes, webdataset_shard
from tests.support.sources import ids, problem, table_of


def archive(folder: Path, *members: tuple[str, bytes]) -> Path:
    (folder / "a.tar").write_bytes(tar_bytes(members))
    return folder / "a.tar"


def content(row: dict[str, Any]) -> bytes:
    """The bytes that the URI of an item names."""
    member = tar_member(row["uri"])
    with Path(member.archive.removeprefix("file://")).open("rb") as file:
        file.seek(member.offset_bytes)
        return file.read(member.size_bytes)


class TestLayouts:
    def test_img2dataset(self, tmp_path: Path) -> None:
        (tmp_path / "00000.tar").write_bytes(img2dataset_shard([3, 4]))

        first, second = table_of(tmp_path / "00000.tar").drop_columns(["item_index"]).to_pylist()

        assert (first.pop("item_id"), second["item_id"]) == ("000000003", "000000004")
        assert content({"uri": first.pop("uri")}) == encoded(make_image(3))
        assert content(second) == encoded(make_image(4))
        assert first == {
            "txt": "image 3", "caption": "image 3", "url": "https://example.org/3.jpg",
            "key": "000000003", "source_status": "success", "error_message": None, "source_width": 96,
            "source_height": 80, "original_width": 960, "original_height": 800, "exif": "{}",
            "sha256": "0" * 64,
        }  # fmt: skip

    def test_webdataset_reads_the_same_images_by_the_same_keys(self, tmp_path: Path) -> None:
        samples = [
            {
                "__key__": f"train/{n:04d}", "jpg": encoded(make_image(n)), "cls": n, "txt": f"text {n}",
                "json": {"n": n, "tags": ["a"]}, "npy": b"x",
            }
            for n in range(5)
        ]  # fmt: skip
        webdataset_shard(tmp_path / "a.tar", samples)

        found = table_of(tmp_path / "a.tar").to_pylist()
        with (tmp_path / "a.tar").open("rb") as file:
            theirs = list(group_by_keys(tar_file_expander([{"url": "a.tar", "stream": file}])))

        assert [row["item_id"] for row in found] == [sample["__key__"] for sample in theirs]
        assert [content(row) for row in found] == [sample["jpg"] for sample in theirs]
        assert [(row["cls"], row["n"], row["tags"], row["txt"]) for row in found] == [
            (n, n, '["a"]', f"text {n}") for n in range(5)
        ]

    def test_names_in_all_their_forms(self, tmp_path: Path) -> None:
        long = "d" * 90 + "/" + "k" * 150
        members = [
            ("./a/000.jpg", b"1"), ("./a/000.txt", b"one"), ("b.c/x.JPG", b"2"), (f"{long}.png", b"3"),
            ("ümlaut #1%.webp", b"4"), (".hidden.jpg", b"h"), ("a/._000.jpg", b"h"), ("README", b"r"),
            ("movie.mp4", b"m"), ("deep/er/x.tar.gif", b"5"),
        ]  # fmt: skip

        found = table_of(archive(tmp_path, *members)).to_pylist()

        assert [row["item_id"] for row in found] == ["a/000", "b.c/x", long, "ümlaut #1%", "deep/er/x"]
        assert [content(row) for row in found] == [b"1", b"2", b"3", b"4", b"5"]
        assert [row["txt"] for row in found] == ["one", None, None, None, None]

    def test_several_images_of_a_group_are_items_of_their_own(self, tmp_path: Path) -> None:
        members = [("1.input.png", b"i"), ("1.target.png", b"t"), ("1.cls", b"7")]
        members += [("2.png", b"p"), ("2.cls", b"007")]

        found = [(row["item_id"], row["cls"]) for row in table_of(archive(tmp_path, *members)).to_pylist()]

        assert found == [("1.input.png", "7"), ("1.target.png", "7"), ("2", "007")]

    def test_texts_that_are_not_what_their_names_say_are_kept(self, tmp_path: Path) -> None:
        members = [
            ("1.jpg", b""), ("1.json", b"{not json"), ("2.jpg", b""), ("2.json", b"[1]"),
            ("3.jpg", b""), ("3.json", b'{"a": 1}'), ("4.jpg", b""), ("4.txt", b"caf\xe9"),
        ]  # fmt: skip

        rows = table_of(archive(tmp_path, *members)).to_pylist()

        assert [(row["json"], row["a"]) for row in rows] == [
            ("{not json", None), ("[1]", None), (None, 1), (None, None),
        ]  # fmt: skip
        assert rows[3]["txt"] == "caf\ufffd"

    def test_fields_that_come_late_are_kept_as_json(self, tmp_path: Path) -> None:
        members = []
        for number in range(600):
            fields = '{"n": 1}' if number < 500 else '{"n": 1, "late": "x"}'
            members += [(f"{number}.jpg", b""), (f"{number}.json", fields.encode())]

        rows = table_of(archive(tmp_path, *members)).to_pylist()

        assert [row["other_fields"] for row in rows] == [None] * 500 + ['{"late": "x"}'] * 100


class TestChoice:
    @pytest.fixture
    def shards(self, tmp_path: Path) -> Path:
        (tmp_path / "shards").mkdir()
        for number in range(12):
            (tmp_path / f"shards/{number:05d}.tar").write_bytes(tar_bytes([(f"{number}.jpg", b"x")]))
        (tmp_path / "shards/00000.parquet").write_bytes(b"x")
        (tmp_path / "shards/00000_stats.json").write_bytes(b"{}")
        return tmp_path / "shards"

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("", list(range(12))),
            ("/*.tar", list(range(12))),
            ("/0000[1-3].tar", [1, 2, 3]),
            ("/{00009..00011}.tar", [9, 10, 11]),
            ("/{00011,00001}.tar", [11, 1]),
            ("/{00011,0000*}.tar", [11, *range(10)]),
            ("/00007.tar", [7]),
        ],
    )
    def test_which_shards_and_in_which_order(self, shards: Path, pattern: str, expected: list[int]) -> None:
        assert ids(f"{shards}{pattern}") == [str(number) for number in expected]

    def test_a_folder_of_images_and_shards_must_say_which(self, shards: Path) -> None:
        (shards / "a.jpg").touch()

        assert "'shards/*.tar' or 'shards/**/*.jpg'" in problem(shards)
        assert len(ids(shards / "*.tar")) == 12
        assert ids(shards / "*.jpg") == ["a.jpg"]

    def test_the_description_tells_other_shards(self, shards: Path) -> None:
        before = open_source(f"{shards}/*.tar").description
        assert open_source(f"{shards}/*.tar").description == before

        (shards / "00003.tar").write_bytes(tar_bytes([("3.jpg", b"longer" * 1000)]))

        assert open_source(f"{shards}/*.tar").description != before

    def test_a_shard_that_is_missing(self, shards: Path) -> None:
        assert f"{shards}/00012.tar: cannot be read: No such file" in problem(shards / "{00010..00012}.tar")
        assert "no file matches" in problem(shards / "{00010,x*}.tar")
        assert "nowhere.tar" in problem(shards / "nowhere.tar")

    def test_columns_do_not_apply(self, shards: Path) -> None:
        assert "tables only" in problem(shards, id_column="key")


class TestDamage:
    WHOLE = tar_bytes((f"{number:03d}.jpg", b"x" * 3000) for number in range(20))

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (WHOLE[: 20 * 3584], "is truncated"),  # at the end of a member, without the marker of the end
            (WHOLE[: 10 * 3584 + 100], "unexpected end of data|is truncated"),
            (WHOLE[: 10 * 3584 + 600], "unexpected end of data|is truncated"),
            (WHOLE[: 10 * 3584 + 3400], "unexpected end of data|is truncated"),
            (WHOLE[: 5 * 3584] + b"\xff" * 512 + WHOLE[5 * 3584 + 512 :], "damaged at byte 17920"),
            (b"no tar at all" * 100, "not a complete tar file"),
            (b"x", "not a complete tar file"),
            (b"", "empty"),
        ],
    )
    def test_a_damaged_archive_is_an_error(self, tmp_path: Path, data: bytes, words: str) -> None:
        (tmp_path / "a.tar").write_bytes(data)

        with pytest.raises(SourceError, match=rf"^{tmp_path}/a\.tar: .*({words})"):
            list(open_source(str(tmp_path / "a.tar")).batches())

    def test_without_images(self, tmp_path: Path) -> None:
        path = archive(tmp_path, ("a.txt", b"x"), ("b.json", b"{}"))

        assert problem(path) == f"{path}: no images in 1 tar files"

    def test_a_packed_archive_is_told_what_to_do(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar.gz").touch()

        assert "decompress it to a .tar" in problem(tmp_path / "a.tar.gz")

    def test_links_and_folders_are_no_images(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
                info = tarfile.TarInfo(f"{kind.decode()}.jpg")
                info.type, info.linkname = kind, "p.jpg"
                archive.addfile(info)
            info = tarfile.TarInfo("p.jpg")
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))

        assert ids(tmp_path / "a.tar") == ["p"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{0..3}", ["0", "1", "2", "3"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{3..1}", ["3", "2", "1"]),
        ("x{a,b}{1..2}y", ["xa1y", "xa2y", "xb1y", "xb2y"]),
        ("{a,}z", ["az", "z"]),
        ("{}{x}{1..}", ["{}{x}{1..}"]),
        ("{x}{1..2}", ["{x}1", "{x}2"]),
        ("{00000..00002}", ["00000", "00001", "00002"]),
    ],
)
def test_braces_are_those_of_a_shell(text: str, expected: list[str]) -> None:
    assert list(expand_braces(text)) == expected
