"""The commands that compare vectors: what they print, and the mistakes of their callers."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipfleet import commands as cli
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.store_rows import store_rows
from clipfleet.store.place import store_place
from tests.support.store_rows import commit_gone, item, make_dataset, make_store
from tests.support.stored_vectors import place_vectors, unit_vectors, vector_rows

FINGERPRINT = "0123456789abcdef"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `clipfleet WORDS` in the current folder; returns its exit code and what it prints."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipfleet", *words])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets one of its own
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


def place(path: Path, vectors: np.ndarray) -> None:
    place_vectors(FolderOutput(path), [vector_rows(0, vectors, FINGERPRINT)])


class TestDuplicates:
    @pytest.fixture(autouse=True)
    def _placed(self, folder: Path) -> None:
        vectors = unit_vectors(1, 60, 64)
        vectors[31] = vectors[7]
        vectors[50:57] = vectors[2]
        place(folder / "vectors", vectors)

    def test_as_json(self, run: Run, folder: Path) -> None:
        code, out, _ = run("duplicates", "vectors", "--json")

        found = json.loads(out)
        groups = found.pop("groups")
        assert code == 0
        assert found == {
            "source": str(folder / "vectors"), "threshold": 0.97, "items": 60, "groups_found": 2,
            "surplus": 8,
        }  # fmt: skip
        assert [len(group["items"]) for group in groups] == [8, 2]
        assert [one["item_id"] for one in groups[1]["items"]] == ["item-00000007", "item-00000031"]
        assert set(groups[1]["items"][0]) == {"item_id", "uri", "content_hash", "cosine"}

    def test_as_csv(self, run: Run) -> None:
        rows = list(csv.DictReader(io.StringIO(run("duplicates", "vectors", "--csv")[1])))

        assert [row["group"] for row in rows] == ["0"] * 8 + ["1"] * 2
        assert {row["equal"] for row in rows} == {"false"}
        assert (rows[9]["item_id"], rows[9]["cosine"]) == ("item-00000031", "1.000000")

    def test_no_cosine_is_above_1(self, run: Run, folder: Path) -> None:
        vectors = unit_vectors(1, 60, 64)
        place(folder / "twice", np.concatenate([vectors, vectors]))

        groups = json.loads(run("duplicates", "twice", "--json")[1])["groups"]

        cosines = [one["cosine"] for group in groups for one in group["items"]]
        assert len(cosines) == 120
        assert 1 - 1e-6 < min(cosines) <= max(cosines) <= 1

    def test_as_lines(self, run: Run) -> None:
        lines = run("duplicates", "vectors")[1].splitlines()

        assert lines[0] == "2 groups among 60 items, with 8 items besides the first of each"
        assert lines[1] == "8 items, alike"
        assert lines[2] == "  1.0000  item-00000002  https://images.example/02/00000002.jpg"
        assert lines[7:9] == ["  and 3 more", "2 items, alike"]

    def test_where_there_are_none(self, run: Run, folder: Path) -> None:
        place(folder / "others", unit_vectors(1, 5, 64))

        assert (
            run("duplicates", "others")[1]
            == "0 groups among 5 items, with 0 items besides the first of each\n"
        )
        assert json.loads(run("duplicates", "others", "--json")[1])["groups"] == []

    def test_of_a_store_as_it_was(self, run: Run, folder: Path) -> None:
        make_store(folder / "store", [item("a"), item("b")], embedding=[1.0, 0.0, 0.0, 0.0])

        found = json.loads(run("duplicates", "store", "--as-of", "2", "--json")[1])
        assert (found["source"], found["groups_found"]) == (f"{folder}/store@2", 1)
        assert run("duplicates", "vectors", "--as-of", "2")[0] == 2

    def test_one_format_at_a_time(self, run: Run) -> None:
        code, out, err = run("duplicates", "vectors", "--csv", "--json")

        assert (code, out, err) == (2, "", "error: give --csv or --json, not both\n")


class TestSearch:
    @pytest.fixture(autouse=True)
    def _placed(self, folder: Path) -> None:
        place(folder / "vectors", unit_vectors(1, 60, 64))
        make_store(folder / "store", [item("a", shelf="x"), item("b", shelf="y")])

    def test_like_an_item(self, run: Run, folder: Path) -> None:
        code, out, _ = run("search", "vectors", "--like", "item-00000007", "--top", "3", "--json")

        found = json.loads(out)
        assert (code, found["source"]) == (0, str(folder / "vectors"))
        assert found["query"] == {"text": None, "image": None, "like": "item-00000007"}
        first, *others = found["hits"]
        assert first["item_id"] == "item-00000007"
        assert first["similarity"] == pytest.approx(1, abs=1e-3)
        assert len(others) == 2

    def test_of_a_store_with_a_condition(self, run: Run) -> None:
        words = ("search", "store", "--like", "a", "--where", "shelf = 'y'", "--columns", "shelf", "--json")

        (hit,) = json.loads(run(*words)[1])["hits"]
        assert (hit["item_id"], hit["shelf"]) == ("b", "y")

    def test_that_finds_nothing_says_so(self, run: Run) -> None:
        words = ("search", "store", "--like", "a", "--where", "shelf = 'z'")

        assert run(*words) == (0, "", "no hits: --where holds for no row with a vector\n")
        assert json.loads(run(*words, "--json")[1])["hits"] == []

    def test_as_a_table_and_a_page(self, run: Run, folder: Path) -> None:
        lines = run("search", "vectors", "--like", "7", "--top", "2", "--html", "page.html")[1].splitlines()

        assert lines[0].split() == ["similarity", "item_id", "uri"]
        assert lines[2].split() == [
            "1.0000", "item-00000007", "https://images.example/07/00000007.jpg",
        ]  # fmt: skip
        page = (folder / "page.html").read_text()
        assert "<h1>like 7</h1>" in page
        assert page.count("<img") == 2

    @pytest.mark.parametrize(
        ("words", "error"),
        [
            (["vectors"], "give a text to search for, then a job, an output or a store to search"),
            (["a", "vectors", "--like", "b"], "give only a job, an output or a store to search"),
            (["vectors", "--like", "b", "--image", "c"], "give --image or --like, not both"),
            (["vectors", "--like", "b"], "no row of item 'b'; give its id, its index or its URI"),
            (["vectors", "--like", "7", "--where", "colour = 1"], "no column colour; columns: item_index, "),
            (["vectors", "--like", "7", "--columns", "colour"], "the rows have no column 'colour'"),
            (["vectors", "--image", "nothing.jpg"], "nothing.jpg: No such file or directory"),
            (["a red car", "vectors"], "CLIPFLEET_REDIS_URL is not set"),
        ],
    )
    def test_mistakes(self, run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], error: str) -> None:
        monkeypatch.delenv("CLIPFLEET_REDIS_URL", raising=False)

        code, out, err = run("search", *words)
        assert (code, out) == (2, "")
        assert error in err


class TestDiff:
    @pytest.fixture(autouse=True)
    def _placed(self, folder: Path) -> None:
        vectors = unit_vectors(1, 60, 64)
        place(folder / "before", vectors)
        vectors[31] = -vectors[31]
        place(folder / "after", vectors[:58])
        items = [item("a"), item("b"), item("c")]
        commit_gone(store_rows(make_store(folder / "store", items)).dataset, items[1:2])

    def test_as_json(self, run: Run, folder: Path) -> None:
        code, out, _ = run("diff", "before", "after", "--sample", "20", "--json")

        found = json.loads(out)
        assert code == 0
        assert found["first"] == {
            "source": str(folder / "before"), "fingerprints": [FINGERPRINT], "only_here": 2,
            "only_here_ids": ["item-00000058", "item-00000059"],
        }  # fmt: skip
        assert (found["common"], found["second"]["only_here"], found["labels"]) == (58, 0, {})
        assert found["vectors"] == {"changed": 1, "mean_cosine": pytest.approx(-1, abs=1e-3)}
        assert [one["item_id"] for one in found["moved"]] == ["item-00000031"]
        assert 0 < found["neighbours"]["agreement"] <= 1
        assert found["neighbours"]["sampled"] == 20

    def test_as_lines(self, run: Run, folder: Path) -> None:
        lines = run("diff", "before", "after")[1].splitlines()

        assert lines[0] == f"A  {folder}/before  (model fingerprint {FINGERPRINT})"
        assert lines[2] == "items       58 in both, 2 only in A, 0 only in B"
        assert lines[3] == "  only in A: item-00000058, item-00000059"
        assert "vectors     1 differ, whose mean cosine is -1.0000" in lines
        assert lines[-2:] == ["moved most, by the cosine of the two vectors", "  -1.0000  item-00000031"]

    @pytest.mark.parametrize("earlier", ["store@2", "store@2100-01-01", f"store@{FINGERPRINT}"])
    def test_versions_of_a_store(self, run: Run, folder: Path, earlier: str) -> None:
        found = json.loads(run("diff", earlier, "store", "--json")[1])

        was_newest = not earlier.endswith("@2")
        assert found["common"] == 2
        assert found["first"]["only_here_ids"] == ([] if was_newest else ["b"])
        assert found["first"]["source"] == f"{folder}/store@{3 if was_newest else 2}"

    def test_an_earlier_model_of_a_store(self, run: Run, folder: Path) -> None:
        place = store_place(str(folder / "store"))
        make_dataset(place.dataset_uri("f" * 16), [item("a"), item("c"), item("d")])

        found = json.loads(run("diff", f"store@{'f' * 16}", "store", "--json")[1])
        assert found["first"]["fingerprints"] == ["f" * 16]
        assert (found["common"], found["first"]["only_here_ids"]) == (2, ["d"])
        assert found["vectors"] is None

    @pytest.mark.parametrize(
        ("name", "error"),
        [
            ("store@9", "has no version 9 (any more)"),
            ("store@yesterday", "'yesterday' is neither a version nor a date"),
            ("store@", "'' is neither a version nor a date"),
            (f"store@{'e' * 16}", f"has no vectors of fingerprint {'e' * 16} (any more)"),
            ("nothing@2", "no folder 'nothing@2' here"),
        ],
    )
    def test_what_is_not_there(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, name: str, error: str
    ) -> None:
        monkeypatch.delenv("CLIPFLEET_REDIS_URL", raising=False)

        code, out, err = run("diff", name, "store")
        assert (code, out) == (2, "")
        assert error in err
