"""What heads are fitted on: rows with a column of labels, and marks; what is left out or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.contract.jobs import DecodeRoute, Exif, SourceDescription
from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.errors import UsageError
from clipfleet.evaluation.on_heads import evaluate_head
from clipfleet.evaluation.roots import read_root
from clipfleet.evaluation.vectors import Embedded, Embedder, ModelOptions
from clipfleet.evaluation.vectors import embedded as embedded_rows
from clipfleet.heads.cross_validation import STRENGTHS
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from clipfleet.training.heads import train
from clipfleet.training.of_marks import samples_of_marks
from clipfleet.training.of_outputs import samples_of_output
from clipfleet.training.of_roots import samples_of_root
from clipfleet.training.samples import Samples
from tests.support.jobs import make_job, place_job
from tests.support.marked_outputs import write_rows
from tests.support.rows import add_part, embedded, failed, note_manifest
from tests.support.wds_roots import write_root

FINGERPRINT = "0123456789abcdef"
CAT, DOG = (1.0, 0.1), (0.1, 1.0)
LISTS = pa.list_(pa.string())


def placed(
    folder: Path,
    items: Sequence[tuple[tuple[float, float], Any]],
    kind: pa.DataType | None = None,
    hashes: Sequence[str | None] = (),
    **job: Any,
) -> PartRows:
    """An output with these vectors and truths, and a failed row."""
    output = FolderOutput(folder)
    source = SourceDescription(kind="csv", uri="/list.csv", extra_columns=("truth",))
    place_job(output, make_job(output.uri, source=source, **job))
    rows = [
        {**embedded(number, *vector), "truth": truth, "model_fingerprint": FINGERPRINT}
        for number, (vector, truth) in enumerate(items)
    ]
    for row, content_hash in zip(rows, hashes, strict=False):
        row["content_hash"] = content_hash
    rows.append({**failed(len(rows)), "truth": None})
    add_part(output, 0, rows, types={"truth": kind or pa.string()})
    note_manifest(output, [objects.LAYOUT.part(0)])
    return PartRows(output)


TWO_EACH = [(CAT, "cat"), (DOG, "dog"), (CAT, " cat "), (DOG, "dog"), (CAT, ""), (DOG, None)]


class TestOutputs:
    def test_labels_are_those_of_the_column_and_what_has_none_is_counted(self, tmp_path: Path) -> None:
        samples = samples_of_output(placed(tmp_path, TWO_EACH), "truth")

        assert (samples.labels, samples.truth.tolist()) == (("cat", "dog"), [0, 1, 0, 1])
        assert samples.known is None
        assert samples.notes == ("left out: 1 failed item", "left out: 2 items without a truth")
        assert samples.images.model_fingerprint == FINGERPRINT

    def test_numbers_are_in_their_order(self, tmp_path: Path) -> None:
        items = [(CAT, 10.0), (DOG, 9.0)] * 2
        samples = samples_of_output(placed(tmp_path, items, pa.float64()), "truth")
        assert (samples.labels, samples.truth.tolist()) == (("9", "10"), [1, 0, 1, 0])

    def test_a_label_set_gives_order_and_templates(self, tmp_path: Path) -> None:
        label_set = LabelSet(labels=("dog", "cat"), templates=("one {}",))
        samples = samples_of_output(placed(tmp_path, TWO_EACH), "truth", label_set)
        assert (samples.labels, samples.templates) == (("dog", "cat"), ("one {}",))
        assert samples.truth.tolist() == [1, 0, 1, 0]

    def test_a_label_that_is_not_in_the_set_is_refused_with_the_way_out(self, tmp_path: Path) -> None:
        reader = placed(tmp_path, [*TWO_EACH, (CAT, "ant")])
        with pytest.raises(
            UsageError, match=r"'ant' is neither .* are cat, dog: add it to them, or leave `lab"
        ):
            samples_of_output(reader, "truth", LabelSet(labels=("cat", "dog")))

    def test_lists_are_multilabel_and_an_empty_one_shows_none(self, tmp_path: Path) -> None:
        items = [(CAT, ["cat"]), (DOG, ["dog", "cat"]), (CAT, []), (DOG, ["dog"]), (DOG, None)]

        samples = samples_of_output(placed(tmp_path, items, LISTS), "truth")

        assert samples.kind == "multilabel"
        assert samples.truth.tolist() == [[True, False], [True, True], [False, False], [False, True]]
        assert samples.known is not None and samples.known.all()

    def test_names_between_bars_need_a_multi_set(self, tmp_path: Path) -> None:
        items = [(CAT, "cat"), (DOG, "dog|cat"), (CAT, "none"), (DOG, "dog")]
        label_set = LabelSet(labels=("cat", "dog"), kind=LabelKind.MULTI)
        samples = samples_of_output(placed(tmp_path, items), "truth", label_set)
        assert samples.truth.tolist() == [[True, False], [True, True], [False, False], [False, True]]

    def test_rare_labels_are_refused_or_left_out_with_their_items(self, tmp_path: Path) -> None:
        reader = placed(tmp_path, [*TWO_EACH, (CAT, "ant")])

        with pytest.raises(
            UsageError, match=r"label 'ant' needs 2 items that show it, and has 1; .*`min_items=`"
        ):
            samples_of_output(reader, "truth")
        samples = samples_of_output(reader, "truth", min_items=2)

        assert (samples.labels, samples.truth.tolist()) == (("cat", "dog"), [0, 1, 0, 1])
        assert len(samples.ids) == len(samples.features) == 4
        assert "left out: 1 label with fewer than 2 items (ant)" in samples.notes

    @pytest.mark.parametrize(
        ("items", "problem"),
        [
            ([(CAT, "cat")] * 3, "a head chooses among labels, and there is only 'cat'"),
            ([(CAT, "")] * 3, "a head chooses among labels, and there is none"),
        ],
    )
    def test_nothing_to_choose_among(self, tmp_path: Path, items: Any, problem: str) -> None:
        with pytest.raises(UsageError, match=problem):
            samples_of_output(placed(tmp_path, items), "truth")

    def test_vectors_of_texts_are_refused(self, tmp_path: Path) -> None:
        reader = placed(tmp_path, TWO_EACH, task="embed_text", text_column="truth")
        with pytest.raises(UsageError, match="holds vectors of texts"):
            samples_of_output(reader, "truth")

    def test_equal_images_are_a_group(self, tmp_path: Path) -> None:
        items = [(CAT, "cat"), (DOG, "dog"), (CAT, "cat"), (DOG, "dog"), (CAT, ""), (CAT, "cat")]
        hashes = ["a", "b", "a", None, "a", None]

        samples = samples_of_output(placed(tmp_path, items, hashes=hashes), "truth")

        assert samples.groups is not None
        assert samples.groups.tolist() == [0, 1, 0, 2, 3]  # of the items with a truth

    def test_a_head_says_how_its_images_were_read(self, tmp_path: Path) -> None:
        reader = placed(tmp_path, TWO_EACH, decode=DecodeRoute.EXACT, exif=Exif.APPLY)

        head = train(samples_of_output(reader, "truth"), "pets").file.head

        assert (head.input.decode, head.input.exif) == ("exact", "apply")

    def test_the_hash_is_that_of_items_and_labels(self, tmp_path: Path) -> None:
        def hash_of(name: str, items: Sequence[tuple[tuple[float, float], Any]]) -> str:
            return samples_of_output(placed(tmp_path / name, items), "truth").data_sha256

        swapped = [(DOG, "dog") if truth == "cat" else (vector, truth) for vector, truth in TWO_EACH]
        other = [*swapped[:2], *TWO_EACH[:2], *TWO_EACH[:2]]
        assert hash_of("a", TWO_EACH) == hash_of("b", TWO_EACH) != hash_of("c", other)


@dataclass(frozen=True)
class Images:
    """An embedder whose job has left these rows."""

    options: ModelOptions
    rows: PartRows

    def images(self, source: str, state: Mapping[str, str]) -> Embedded:
        return embedded_rows(self.rows)


def test_equal_images_of_a_root_are_a_group(tmp_path: Path) -> None:
    vectors, hashes = [(CAT, ""), (DOG, ""), (CAT, ""), (DOG, "")], ["a", "b", "a", None]
    embedder = Images(ModelOptions("demo"), placed(tmp_path / "images", vectors, hashes=hashes))
    shard = [(b"x", {"cls": str(one).encode()}) for one in (0, 1, 0, 1, 0)]  # the last one has failed
    root = write_root(tmp_path / "root", [shard], {"classnames.txt": ["cat", "dog"]}, "train")

    samples = samples_of_root(read_root(str(root), "train"), cast(Embedder, embedder))

    assert samples.groups is not None
    assert samples.groups.tolist() == [0, 1, 0, 2]


class TestSpread:
    """A label with one image only can be judged by nothing else than this image."""

    NOTE = "equal images lie in different folds, so that figures of their labels are too good: cat"

    def test_labels_with_one_image_are_named(self, tmp_path: Path) -> None:
        items = [(CAT, "cat")] * 3 + [(DOG, "dog")] * 3
        one_cat = placed(tmp_path / "a", items, hashes=["a", "a", "a", "b", "c", "d"])
        two_cats = placed(tmp_path / "b", items, hashes=["a", "a", "e", "b", "c", "d"])

        assert self.NOTE in train(samples_of_output(one_cat, "truth"), "pets").notes
        assert "equal images" not in " ".join(train(samples_of_output(two_cats, "truth"), "pets").notes)

    def test_of_marks(self, tmp_path: Path) -> None:
        items = [(CAT, "")] * 3 + [(DOG, "")] * 3
        reader = placed(tmp_path / "a", items, hashes=["a", "a", "a", "b", "c", "d"])
        rows = [mark(n, "cat", "yes" if n < 3 else "no") for n in range(6)]
        rows += [mark(n, "hat", "yes" if n % 2 else "no") for n in (0, 3, 4, 5)]

        samples = samples_of_marks(reader, [write_rows(tmp_path / "fit.csv", rows)])

        assert self.NOTE in train(samples, "pets").notes


class TestLongTexts:
    """A job carries what a head says of itself."""

    def test_a_label_or_a_licence_that_is_too_long_is_refused(self, tmp_path: Path) -> None:
        items = [(CAT, "cat"), (DOG, "dog " * 300)] * 2
        reader = placed(tmp_path / "long", items)
        with pytest.raises(UsageError, match=r"long: labels\.1: 'dog.* 1,000 characters: shorten it$"):
            train(samples_of_output(reader, "truth"), "pets")
        samples = samples_of_output(placed(tmp_path / "short", TWO_EACH), "truth")
        with pytest.raises(UsageError, match=r"licence: .* 1,000 characters"):
            train(samples, "pets", licence="MIT " * 300)

    def test_of_a_long_path_the_end_is_kept(self, tmp_path: Path) -> None:
        reader = placed(tmp_path.joinpath(*["deep" * 50] * 6), TWO_EACH * 2)
        samples = samples_of_output(reader, "truth")
        some = samples.of_items(np.arange(len(samples.ids)) < 4)

        file = train(some, "pets").file

        source = file.head.training.source
        assert source is not None and source.startswith("...") and source.endswith("/" + "deep" * 50)
        notes = " ".join(evaluate_head(reader, "truth", file).document()["notes"])
        assert "fitted on items of this output" in notes


def mark(index: int, label: str, verdict: str, **values: str) -> dict[str, str]:
    plain = {"item_index": str(index), "label": label, "verdict": verdict, "purpose": "fit"}
    return {**plain, "inclusion_probability": "0.5", "by": "ann", **values}


MARKS = [
    mark(0, "cat", "yes"), mark(2, "cat", "yes"), mark(1, "cat", "no"), mark(3, "cat", "no"),
    mark(4, "cat", "skip"), mark(1, "dog", "yes"), mark(3, "dog", "yes"), mark(0, "dog", "no"),
    mark(4, "dog", "no"),
]  # fmt: skip


class TestMarks:
    def marked(
        self,
        folder: Path,
        rows: Sequence[dict[str, str]],
        job: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> Samples:
        reader = placed(folder / f"out-{len(rows)}", TWO_EACH, **(job or {}))
        return samples_of_marks(reader, [write_rows(folder / "fit.csv", rows)], **values)

    def test_only_marked_items_count_for_a_label(self, tmp_path: Path) -> None:
        samples = self.marked(tmp_path, MARKS)

        assert (samples.labels, samples.ids) == (("cat", "dog"), tuple(f"img{n}" for n in range(5)))
        assert samples.known is not None
        assert samples.known.tolist() == [
            [True, True],
            [True, True],
            [True, False],
            [True, True],
            [False, True],
        ]
        assert (samples.truth & samples.known).tolist() == [
            [True, False], [False, True], [True, False], [False, True], [False, False]
        ]  # fmt: skip

    def test_an_item_counts_for_those_that_were_not_drawn(self, tmp_path: Path) -> None:
        rows = [{**one, "inclusion_probability": "0.1"} if one["item_index"] == "3" else one for one in MARKS]

        samples = self.marked(tmp_path, [*rows, mark(5, "ant", "yes")], min_items=1)

        assert samples.labels == ("cat", "dog")  # the weights of ant went with it
        assert samples.weights is not None and samples.known is not None
        assert samples.weights[samples.ids.index("img3")].tolist() == [10, 10]
        assert samples.weights.sum(axis=0).tolist() == [16, 16]
        assert not samples.weights[~samples.known].any()

    def of_vectors(self, folder: Path, vectors: Sequence[Any], rows: Sequence[dict[str, str]]) -> Samples:
        reader = placed(folder / "out", [(vector, "") for vector in vectors])
        return samples_of_marks(reader, [write_rows(folder / "fit.csv", rows)])

    def test_rare_positives_that_all_come_first_have_an_average_precision_of_1(self, tmp_path: Path) -> None:
        vectors = [CAT] * 20 + [DOG] * 80
        rows = [mark(n, "cat", "yes", inclusion_probability="1") for n in range(20)]
        rows += [mark(n, "cat", "no", inclusion_probability="0.005") for n in range(20, 100)]

        measured = train(self.of_vectors(tmp_path, vectors, rows), "cats").measured

        assert measured.metrics["mean_average_precision"] == pytest.approx(1)
        assert any("not about the marks" in note for note in measured.notes)

    def test_a_very_rare_label_is_accepted_where_a_line_divides_it(self, tmp_path: Path) -> None:
        vectors = [(1.0, 0.8)] * 20 + [(0.8, 1.0)] * 80
        rows = [mark(n, "cat", "yes", inclusion_probability="1") for n in range(20)]
        rows += [mark(n, "cat", "no", inclusion_probability="0.0001") for n in range(20, 100)]

        trained = train(self.of_vectors(tmp_path, vectors, rows), "cats")

        assert trained.measured.metrics["recall"] == 1
        assert trained.file.head.training.cv["c"]["cat"] > STRENGTHS[-1]

    def test_figures_of_several_labels_are_about_all_rows(self, tmp_path: Path) -> None:
        # Given a label that vectors tell, of 4 rows, and one that they do not tell, of 20 rows
        vectors = [CAT] * 4 + [DOG] * 4 + [(1.0, 1.0)] * 8
        rows = [mark(n, "cat", "yes" if n < 4 else "no", inclusion_probability="1") for n in range(8)]
        rows += [mark(n, "dog", "yes" if n < 10 else "no", inclusion_probability="0.1") for n in range(8, 16)]

        measured = train(self.of_vectors(tmp_path, vectors, rows), "pets").measured

        assert [row.recall for row in measured.classes] == [1, 0]
        assert measured.metrics["recall"] == pytest.approx(4 / (4 + 20))
        assert measured.metrics["precision"] == 1
        assert measured.metrics["f1"] == pytest.approx(2 * 4 / (4 + 20 + 4))

    def test_marks_that_all_count_the_same_are_not_said_to_differ(self, tmp_path: Path) -> None:
        vectors = [CAT] * 5 + [DOG] * 5
        rows = [
            mark(n, label, "yes" if n < 5 else "no", inclusion_probability="0.3")
            for label, count in (("cat", 10), ("dog", 7))
            for n in range(count)
        ]

        measured = train(self.of_vectors(tmp_path, vectors, rows), "pets").measured

        assert not measured.notes

    def test_templates_are_those_of_the_label_sets_of_the_labels(self, tmp_path: Path) -> None:
        def sets(*templates: str) -> dict[str, Any]:
            named = zip(("cat", "dog"), templates, strict=True)
            return {
                "task": "classify", "store_embeddings": True,
                "label_sets": [
                    LabelSet(name=label, labels=(label, f"no {label}"), templates=(one,))
                    for label, one in named
                ],
            }  # fmt: skip

        same = self.marked(tmp_path, MARKS, sets("one {}", "one {}"))
        differ = self.marked(tmp_path / "b", MARKS, sets("one {}", "two {}"))

        assert same.templates == ("one {}",)
        with pytest.raises(UsageError, match=r"different templates: .*`template=`.*`label_set=`"):
            differ.require_templates()
        assert self.marked(tmp_path, MARKS[:4], sets("one {}", "two {}")).templates == ("one {}",)

    def test_certify_marks_and_disagreements_are_left_out(self, tmp_path: Path) -> None:
        rows = [*MARKS, mark(5, "cat", "yes"), mark(5, "cat", "no", by="bob")]
        rows.append(mark(2, "dog", "yes", purpose="certify"))
        rows.append(mark(3, "dog", "yes", purpose="correct"))

        samples = self.marked(tmp_path, rows)

        assert len(samples.ids) == 5
        assert samples.notes == (
            "left out: 1 correction, which no sample has drawn",
            "left out: 1 certify mark, which test and never fit",
            "left out: 1 mark on which people disagree",
        )

    def test_certify_marks_alone_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no fit marks: all 9 are certify marks"):
            self.marked(tmp_path, [{**one, "purpose": "certify"} for one in MARKS])

    def test_a_label_needs_two_of_each(self, tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match="label 'cat' needs 2 items that are known not to show it, and has 1"
        ):
            self.marked(tmp_path, [one for one in MARKS if one["item_index"] != "3"][:3] + MARKS[5:])
        assert self.marked(tmp_path, MARKS[:4] + MARKS[5:6], min_items=2).labels == ("cat",)

    def test_a_head_of_one_label(self, tmp_path: Path) -> None:
        made = train(self.marked(tmp_path, MARKS[:4]), "cats")
        head = made.file.head
        assert (head.kind, head.labels, head.training.classes) == ("multilabel", ("cat",), {"cat": 2})
        assert made.measured.metrics["recall"] is not None

    def test_the_file_and_the_notes_say_what_the_search_found(self, tmp_path: Path) -> None:
        samples = self.marked(tmp_path, MARKS[:4])
        plain = train(samples, "cats")
        assert "scale" not in plain.file.head.training.cv
        assert plain.file.head.training.cv["c"] == {"cat": STRENGTHS[-1]}  # of items that a line divides
        assert "the largest strength of the grid (c) fits best, for 1 label (cat)" in plain.notes

    def test_weights_of_marks_move_the_layer(self, tmp_path: Path) -> None:
        samples = self.marked(tmp_path, MARKS)
        assert samples.known is not None
        weights = np.where(samples.truth, 9.0, 1.0)
        plain, heavy = (
            train(replace(samples, weights=one), "pets").file.arrays()["0.bias"] for one in (None, weights)
        )
        assert (heavy > plain).all()
