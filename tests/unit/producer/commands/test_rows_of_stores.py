"""Commands that read rows and vectors, on a store: no Redis is needed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipfleet import commands as cli
from clipfleet.results.kinds import Layout
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import StorePlace
from tests.support.store_rows import (
    FINGERPRINT,
    addresses_of,
    item,
    make_store,
    stored_rows,
)

HEAD = "kinds.head.safetensors"
Run = Callable[..., tuple[int, str, str]]
KINDS = ("cat", "dog")
ITEMS = [item(f"{kind} {number}", kind=kind) for number in range(20) for kind in KINDS]


def vectors_of_kinds() -> list[list[float]]:
    """One direction per kind, with noise that leaves them apart."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=(len(ITEMS), 4))
    noise[np.arange(len(ITEMS)), [KINDS.index(one["kind"]) for one in ITEMS]] += 1
    return noise.tolist()


@pytest.fixture
def place(folder: Path) -> StorePlace:
    """A store with vectors of two kinds, at version 3; version 2 holds one item."""
    place = make_store(folder / "vectors", [item("first", kind="cat")])
    dataset = VectorDataset.open(place.dataset_uri(FINGERPRINT))
    rows = stored_rows(ITEMS, vectors=vectors_of_kinds())
    dataset.replace(addresses_of(dataset, [item("first")]), rows.to_batches(), {})
    return place


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `clipfleet WORDS`; returns its exit code and what it prints."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipfleet", *words])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets one of its own
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.mark.parametrize(("as_of", "first"), [([], "cat 0"), (["--as-of", "2"], "first")])
def test_results(run: Run, place: StorePlace, as_of: list[str], first: str) -> None:
    words = ["--format", "jsonl", "--columns", "item_id,kind", "--limit", "1"]

    code, out, _ = run("results", "vectors", *words, *as_of)

    assert (code, json.loads(out)) == (0, {"item_id": first, "kind": "cat"})


def test_one_item(run: Run, place: StorePlace) -> None:
    code, out, _ = run("show", "dog 3", "--job", place.uri, "--json")

    row = json.loads(out)
    assert (code, row["item_index"], row["model_fingerprint"], row["kind"]) == (0, 7, FINGERPRINT, "dog")


OF_LABELS = (Layout.LABEL_STUDIO, Layout.FIFTYONE)
OF_IMAGES = (Layout.WEBDATASET, Layout.HUGGING_FACE_IMAGES)


@pytest.mark.parametrize("layout", [one for one in Layout if one not in (*OF_LABELS, *OF_IMAGES)])
def test_an_export(run: Run, place: StorePlace, layout: Layout) -> None:
    code, out, _ = run("export", "vectors", "--layout", layout, "--to", "to", "--json")

    assert (code, json.loads(out)["rows"]) == (0, len(ITEMS))


@pytest.mark.parametrize("layout", OF_LABELS)
def test_an_export_of_labels_needs_labels(run: Run, place: StorePlace, layout: Layout) -> None:
    code, _, err = run("export", "vectors", "--layout", layout, "--to", "to")

    assert code == 2
    assert "run `clipfleet relabel` with labels" in err
    assert not Path("to").exists()


def test_a_head_is_fitted_and_measured(run: Run, place: StorePlace) -> None:
    fit = run("head", "fit", "vectors", "-o", HEAD, "--truth-column", "kind", "--json")
    measured = run("evaluate", "vectors", "--truth-column", "kind", "--head", HEAD, "--json")

    assert (fit[0], measured[0]) == (0, 0), fit[2] + measured[2]
    found = json.loads(measured[1])
    assert (found["items"], found["metrics"]["lp_acc1"]) == (len(ITEMS), 1.0)
    assert found["source"] == f"{place.uri}@3"


def test_items_of_a_version(run: Run, place: StorePlace) -> None:
    code, _, err = run("head", "fit", "vectors", "-o", HEAD, "--truth-column", "kind", "--as-of", "2")

    assert code == 2
    assert f"{place.uri}@2" in err


def test_marks_name_the_items_of_a_store_by_their_ids(run: Run, place: StorePlace, folder: Path) -> None:
    """They were drawn from another version: positions differ, an image has changed, and an item is gone."""
    lines = ["item_index,item_id,label,verdict,purpose,inclusion_probability,content_hash"]
    for number, one in enumerate(reversed(ITEMS)):
        for kind in KINDS:
            verdict = "yes" if one["kind"] == kind else "no"
            lines.append(f"{number},{one['item_id']},{kind},{verdict},fit,1,hash of {one['item_id']}")
    lines += ["7,bird,cat,no,fit,1,", f"0,{ITEMS[0]['item_id']},dog,yes,fit,1,hash of another image"]
    (folder / "marks.csv").write_text("\n".join(lines))

    code, out, err = run("head", "fit", "vectors", "-o", HEAD, "--marks", "marks.csv", "--json")

    assert code == 0, err
    found = json.loads(out)
    assert (found["labels"], found["training"]["n"]) == ([*KINDS], len(ITEMS))
    assert "left out: 2 marks of images that have changed or are gone" in found["notes"]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["results", "./plain", "--as-of", "2"], "is no store: only stores have versions, leave --as-of out"),
        (["results", "vectors", "--as-of", "9"], "has no version 9"),
        (["results", "vectors", "--as-of", "noon"], "'noon' is neither a version nor a date"),
        (["sample", "vectors", "--purpose", "fit"], "run `clipfleet relabel` with labels"),
        (["head", "fit", "vectors", "-o", HEAD, "--truth-column", "size"], "no column 'size'; it has kind"),
    ],
)
def test_mistakes(run: Run, folder: Path, words: list[str], problem: str) -> None:
    (folder / "plain").mkdir()

    code, _, err = run(*words)

    assert code == 2
    assert problem in err


def test_a_report_of_a_store_lists_its_rows(place: StorePlace, run: Run, folder: Path) -> None:
    code, out, err = run("report", "./vectors", "-o", "page.html", "--json")

    assert code == 0, err
    found = json.loads(out)
    assert (found["rows"], found["failed"]) == (len(ITEMS), 0)
    assert "cat 3" in (folder / "page.html").read_text()
