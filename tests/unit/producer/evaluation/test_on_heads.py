"""Heads against known labels: on stored vectors, on the columns of a job, on roots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.contract.heads import Head, HeadInput, HeadKind, HeadTraining
from clipfleet.contract.jobs import SourceDescription
from clipfleet.errors import UsageError
from clipfleet.evaluation.on_heads import evaluate_head, evaluate_head_root, evaluate_head_rows
from clipfleet.evaluation.on_rows import evaluate_rows
from clipfleet.evaluation.outcome import Evaluation
from clipfleet.evaluation.pairs import compare
from clipfleet.evaluation.roots import read_root
from clipfleet.evaluation.vectors import Embedded, Embedder, ModelOptions
from clipfleet.evaluation.words import evaluation_lines
from clipfleet.heads.files import HeadFile, make_head
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from clipfleet.training.heads import train
from clipfleet.training.of_outputs import samples_of_output
from tests.support.heads import head_of
from tests.support.jobs import make_job, place_job
from tests.support.rows import add_part, embedded, failed, note_manifest
from tests.support.wds_roots import write_root

FINGERPRINT = "0123456789abcdef"
CAT, DOG, BOTH = (1.0, 0.0), (0.0, 1.0), (0.6, 0.8)
WEIGHT = np.array([[10.0, 0.0], [0.0, 10.0]])

CHOICE = head_of(2, 2, labels=("cat", "dog"), input=HeadInput(dim=2, model="demo", fingerprint=FINGERPRINT))
LABELS = head_of(2, 2, labels=("cat", "dog"), kind=HeadKind.MULTILABEL)
NUMBER = head_of(2, 1, labels=("cats",), kind=HeadKind.REGRESS)
DECISION = NUMBER.model_copy(update={"thresholds": {"cats": 0.5}})


def file_of(head: Head, weight: np.ndarray = WEIGHT, bias: float = 0.0) -> HeadFile:
    weight = weight[: len(head.labels)]
    return make_head(head, {"0.weight": weight, "0.bias": np.full(len(weight), bias)})


FILES = {
    HeadKind.CLASSIFY: file_of(CHOICE),
    HeadKind.MULTILABEL: file_of(LABELS, bias=-5.0),
    HeadKind.REGRESS: file_of(NUMBER, WEIGHT / 10),
}


class Outputs:
    """Outputs of jobs over items with a truth, in folders of their own."""

    def __init__(self, folder: Path) -> None:
        self._folders = (folder / str(number) for number in count())

    def of(
        self,
        items: Sequence[tuple[tuple[float, float], Any]],
        kind: pa.DataType | None = None,
        rows: Sequence[Mapping[str, Any]] = (),
        types: Mapping[str, pa.DataType] | None = None,
        **job: Any,
    ) -> PartRows:
        """Vectors, each with a truth, and one failed item; `rows` are more columns of the vectors."""
        output = FolderOutput(next(self._folders))
        source = SourceDescription(kind="csv", uri="/list.csv", extra_columns=("truth",))
        place_job(output, make_job(output.uri, source=source, **job))
        found = [
            {**embedded(number, *vector), "truth": truth, "model_fingerprint": FINGERPRINT}
            for number, (vector, truth) in enumerate(items)
        ]
        for row, more in zip(found, rows, strict=False):
            row.update(more)
        found.append({**failed(len(found)), "truth": None})
        add_part(output, 0, found, types={"truth": kind or pa.string(), **(types or {})})
        note_manifest(output, [objects.LAYOUT.part(0)])
        return PartRows(output)


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    return Outputs(tmp_path)


class TestVectors:
    def test_the_chosen_labels_have_the_metrics_of_a_linear_probe(self, outputs: Outputs) -> None:
        reader = outputs.of([(CAT, "cat"), (DOG, "0"), (DOG, "dog"), (CAT, "")])

        found = evaluate_head(reader, "truth", FILES[HeadKind.CLASSIFY])

        document = found.document()
        assert document["metrics"] == {"lp_acc1": 2 / 3, "lp_acc5": None, "lp_mean_per_class_recall": 0.75}
        assert set(document["intervals"]) == {"lp_acc1", "lp_mean_per_class_recall"}
        assert document["notes"] == [
            "lp_acc5 is null: there are fewer than 5 classes", "left out: 1 item without a truth"
        ]  # fmt: skip
        assert (document["task"], document["items"], len(document["failed"])) == ("linear_probe", 3, 1)
        assert document["head"] == {
            "name": "taste", "kind": "classify", "seed": None,
            "sha256": FILES[HeadKind.CLASSIFY].of_job.sha256,
        }  # fmt: skip
        assert next(evaluation_lines(found)).endswith("3 items, model demo, head taste")

    def test_the_file_for_clip_benchmark_is_that_of_its_linear_probe(self, outputs: Outputs) -> None:
        found = evaluate_head(outputs.of([(CAT, "cat")]), "truth", FILES[HeadKind.CLASSIFY])

        theirs = found.clip_benchmark_document()
        assert theirs["task"] == "linear_probe"
        assert theirs["metrics"] == {
            "lp_acc1": 1.0, "lp_acc5": None, "lp_mean_per_class_recall": 1.0, "normalized": True, "seed": None
        }  # fmt: skip

    def test_the_best_five_are_told_where_their_probabilities_are_0(self, outputs: Outputs) -> None:
        names = ("ant", "bee", "cow", "dog", "emu", "fox")
        weight = np.array([[3e3, 0], [1e3, 0], [1e3, 0], [1e3, 0], [1e3, 0], [2e3, 0]])
        head = head_of(2, 6, labels=names, input=HeadInput(dim=2, model="demo"))
        reader = outputs.of([(CAT, "ant"), (CAT, "fox"), (CAT, "fox"), (CAT, "emu")])

        found = evaluate_head(reader, "truth", file_of(head, weight)).document()

        assert (found["metrics"]["lp_acc1"], found["metrics"]["lp_acc5"]) == (1 / 4, 3 / 4)

    def test_accepted_labels_are_compared_with_lists(self, outputs: Outputs) -> None:
        reader = outputs.of([(CAT, ["cat"]), (BOTH, ["cat"]), (DOG, [])], pa.list_(pa.string()))

        found = evaluate_head(reader, "truth", FILES[HeadKind.MULTILABEL]).document()

        assert (found["metrics"]["lp_precision"], found["metrics"]["lp_recall"]) == (0.5, 1.0)
        assert found["metrics"]["lp_mean_average_precision"] == 0.5  # cats are first, and no item shows a dog
        assert [one["label"] for one in found["classes"]] == ["cat", "dog"]

    def test_numbers_are_compared_with_numbers(self, outputs: Outputs) -> None:
        items: list[tuple[tuple[float, float], Any]] = [(CAT, 0.9), (BOTH, 0.7), (DOG, 0.0)]

        found = evaluate_head(outputs.of(items, pa.float64()), "truth", FILES[HeadKind.REGRESS]).document()

        assert found["task"] == "regression"
        assert found["metrics"] == {
            "mean_absolute_error": pytest.approx(0.2 / 3, abs=1e-3),
            "pearson": pytest.approx(np.corrcoef([1, 0.6, 0], [0.9, 0.7, 0])[0, 1], abs=1e-3),
            "spearman": pytest.approx(1.0),
        }
        assert set(found["intervals"]) == set(found["metrics"])

    def test_a_number_with_a_threshold_decides(self, outputs: Outputs) -> None:
        items = [(CAT, "cats"), (BOTH, "none"), (DOG, "0"), (DOG, "1")]

        found = evaluate_head(outputs.of(items), "truth", file_of(DECISION, WEIGHT / 10)).document()[
            "metrics"
        ]

        assert (found["acc1"], found["precision"], found["recall"]) == (0.5, 0.5, 0.5)
        assert found["none_auroc"] == 0.625
        assert "acc5" not in found

    def test_without_a_threshold_only_the_order_is_measured(self, outputs: Outputs) -> None:
        items = [(CAT, "1"), (BOTH, "1"), (DOG, "0")]

        found = evaluate_head(outputs.of(items), "truth", FILES[HeadKind.REGRESS]).document()

        assert found["metrics"] == {"auroc": 1.0}

    def test_equal_numbers_have_no_correlation(self, outputs: Outputs) -> None:
        found = evaluate_head(
            outputs.of([(CAT, "3"), (CAT, "5")]), "truth", FILES[HeadKind.REGRESS]
        ).document()

        assert found["metrics"] == {"mean_absolute_error": 3.0, "pearson": None, "spearman": None}
        assert any("pearson and spearman have no value" in note for note in found["notes"])

    def test_equal_numbers_whose_mean_is_rounded_have_no_correlation_either(self, outputs: Outputs) -> None:
        items = [(CAT, "0.1"), (DOG, "0.1"), (BOTH, "0.1")]

        found = evaluate_head(outputs.of(items), "truth", FILES[HeadKind.REGRESS]).document()

        assert (found["metrics"]["pearson"], found["metrics"]["spearman"]) == (None, None)

    def test_one_class_alone_has_no_order(self, outputs: Outputs) -> None:
        found = evaluate_head(outputs.of([(CAT, "1"), (DOG, "1")]), "truth", FILES[HeadKind.REGRESS])

        assert found.document()["metrics"] == {"auroc": None}
        assert any("auroc has no value" in note for note in found.document()["notes"])

    @pytest.mark.parametrize(
        ("head", "truth", "problem"),
        [
            (
                file_of(CHOICE),
                "cow",
                "item 0 .*'cow' is neither .*; the labels of head 'taste' are cat, dog$",
            ),
            (file_of(NUMBER), "many", "'many' is no number, and neither 'cats' nor 'none'"),
            (file_of(NUMBER), "inf", "'inf' is no number"),
            (file_of(CHOICE), "", "none of 2 rows has a score of the head and a truth"),
            (
                file_of(CHOICE.model_copy(update={"input": HeadInput(dim=3, model="demo")}), np.ones((2, 3))),
                "cat",
                "takes vectors of length 3, these have length 2",
            ),
            (
                file_of(
                    CHOICE.model_copy(update={"input": HeadInput(dim=2, model="demo", fingerprint="f" * 16)})
                ),
                "cat",
                f"fingerprint f{'f' * 15} .*these have {FINGERPRINT} .*weights or precision differ",
            ),
            (
                file_of(
                    CHOICE.model_copy(
                        update={"input": HeadInput(dim=2, model="demo", fingerprint="f" * 16, exif="apply")}
                    )
                ),
                "cat",
                "images that were read with `exif=` apply",
            ),
            (
                file_of(CHOICE.model_copy(update={"input": HeadInput(dim=2, model="ViT-L-14:openai")})),
                "cat",
                "takes vectors of ViT-L-14:openai",
            ),
        ],
    )
    def test_what_is_refused(self, outputs: Outputs, head: HeadFile, truth: str, problem: str) -> None:
        with pytest.raises(UsageError, match=problem):
            evaluate_head(outputs.of([(CAT, truth)]), "truth", head)


class TestSeen:
    """Figures of the items that a head was fitted on look better than they are."""

    ITEMS: ClassVar = [(CAT, "cat"), (DOG, "dog"), (CAT, "cat"), (DOG, "dog"), (CAT, "")]

    def notes(self, reader: PartRows, file: HeadFile) -> str:
        return " ".join(evaluate_head(reader, "truth", file).document()["notes"])

    def test_the_same_items_in_the_same_or_another_output(self, outputs: Outputs) -> None:
        reader = outputs.of(self.ITEMS)
        file = train(samples_of_output(reader, "truth"), "pets").file

        assert "the head was fitted on these items:" in self.notes(reader, file)
        assert "the head was fitted on these items:" in self.notes(outputs.of(self.ITEMS), file)

    def test_lists(self, outputs: Outputs) -> None:
        items = [(CAT, ["cat"]), (DOG, ["dog"]), (CAT, ["cat"]), (DOG, ["dog"]), (BOTH, [])]
        reader = outputs.of(items, pa.list_(pa.string()))

        file = train(samples_of_output(reader, "truth"), "pets").file

        assert "the head was fitted on these items:" in self.notes(
            outputs.of(items, pa.list_(pa.string())), file
        )

    def test_other_items_of_the_same_output(self, outputs: Outputs) -> None:
        reader = outputs.of(self.ITEMS)
        training = HeadTraining(recipe="test", source=reader.uri, data_sha256="0" * 64)
        file = file_of(CHOICE.model_copy(update={"training": training}))

        assert "fitted on items of this output: figures of the same items" in self.notes(reader, file)
        assert "fitted" not in self.notes(outputs.of(self.ITEMS), file)


def test_vectors_of_texts_are_refused(outputs: Outputs) -> None:
    reader = outputs.of([(CAT, "cat")], task="embed_text", text_column="truth")

    with pytest.raises(UsageError, match="holds vectors of texts"):
        evaluate_head(reader, "truth", FILES[HeadKind.CLASSIFY])


class TestRows:
    """A job with a head has its columns, also where it keeps no vectors."""

    def of(self, outputs: Outputs, file: HeadFile, items: Sequence[tuple[Any, float, Any]]) -> PartRows:
        """Rows with a label, a score, and a truth."""
        label, score, *accepted = file.of_job.columns
        rows = [{label: one, score: number, **{name: [one] for name in accepted}} for one, number, _ in items]
        types = {label: pa.string(), score: pa.float32()}
        types |= dict.fromkeys(accepted, pa.list_(pa.string()))
        return outputs.of([(CAT, truth) for *_, truth in items], rows=rows, types=types, heads=(file.of_job,))

    def test_labels(self, outputs: Outputs) -> None:
        rows = [("cat", 0.9, "cat"), ("dog", 0.9, "cat"), ("dog", 0.9, "dog"), ("dog", 0.6, None)]
        reader = self.of(outputs, FILES[HeadKind.CLASSIFY], rows)

        found = evaluate_head_rows(reader, "truth", "taste").document()

        assert found["metrics"] == {"lp_acc1": 2 / 3, "lp_acc5": None, "lp_mean_per_class_recall": 0.75}
        assert found["notes"][0].startswith("lp_acc5 is null: rows have one label of a head")
        assert (found["outputs"], found["items"]) == ({"rows": reader.uri}, 3)

    def test_accepted_labels(self, outputs: Outputs) -> None:
        reader = self.of(outputs, FILES[HeadKind.MULTILABEL], [("cat", 0.9, "cat|dog"), ("dog", 0.9, "dog")])

        found = evaluate_head_rows(reader, "truth", "taste").document()["metrics"]

        assert (found["lp_precision"], found["lp_recall"]) == (1.0, 2 / 3)
        assert found["lp_mean_average_precision"] is None

    def test_numbers(self, outputs: Outputs) -> None:
        reader = self.of(outputs, file_of(DECISION), [("cats", 0.9, "1"), (None, 0.4, "0"), (None, 0.2, "1")])

        found = evaluate_head_rows(reader, "truth", "taste").document()["metrics"]

        assert (found["acc1"], found["recall"], found["none_auroc"]) == (2 / 3, 0.5, 0.5)

    def test_rows_and_vectors_say_the_same(self, outputs: Outputs) -> None:
        reader = self.of(outputs, FILES[HeadKind.CLASSIFY], [("cat", 0.99, "cat"), ("cat", 0.99, "dog")])
        by_vectors = evaluate_head(reader, "truth", FILES[HeadKind.CLASSIFY])

        found = compare(by_vectors, evaluate_head_rows(reader, "truth", "taste"), "rows").comparison

        assert [(one.value, one.difference) for one in found if one.metric == "lp_acc1"] == [(0.5, 0.0)]

    def test_a_head_that_the_job_did_not_have(self, outputs: Outputs) -> None:
        reader = self.of(outputs, FILES[HeadKind.CLASSIFY], [("cat", 0.9, "cat")])

        with pytest.raises(UsageError, match=r"no columns of a head 'x', .*its heads are taste"):
            evaluate_head_rows(reader, "truth", "x")


def test_a_head_is_compared_with_zero_shot_labels(outputs: Outputs) -> None:
    items = [(CAT, "cat"), (DOG, "dog")] * 4
    labelled = {"labels": ["dog", "cat"], "scores": [0.9, 0.1]}
    reader = outputs.of(items, rows=[labelled] * len(items), labels=("cat", "dog"), store_embeddings=True)
    zero_shot = evaluate_rows(reader, "truth")

    found = compare(evaluate_head(reader, "truth", FILES[HeadKind.CLASSIFY]), zero_shot, "zero-shot")

    acc1 = found.comparison[0]
    assert (acc1.metric, acc1.value, acc1.other, acc1.difference) == ("lp_acc1", 1.0, 0.5, 0.5)
    assert acc1.p_value == pytest.approx(0.125)
    assert acc1.interval is not None and acc1.interval[0] > 0


@dataclass(frozen=True)
class Images:
    """An embedder of four images, the last of which has no vector."""

    options: ModelOptions

    def images(self, source: str, state: Mapping[str, str]) -> Embedded:
        vectors = np.array([CAT, CAT, DOG, (0, 0)], np.float32)
        return Embedded(
            vectors, np.array([True, True, True, False]), (), FINGERPRINT, f"/images-{self.options.exif}"
        )


class TestRoots:
    def evaluated(
        self, folder: Path, file: HeadFile, names: Sequence[str], truth: Sequence[int], **files: Sequence[str]
    ) -> Evaluation:
        shard = [(b"x", {"cls": str(one).encode()}) for one in truth]
        written = {f"{name}.txt": lines for name, lines in files.items()}
        root = write_root(folder / "root", [shard], {"classnames.txt": names, **written})
        embedder = cast(Embedder, Images(ModelOptions("demo")))
        return evaluate_head_root(read_root(str(root), "test"), embedder, file)

    def test_classes_are_known_by_their_names(self, tmp_path: Path) -> None:
        found = self.evaluated(tmp_path, file_of(CHOICE), ["cow", "dog", "cat"], [2, 0, 1, 1]).document()

        assert found["metrics"]["lp_acc1"] == 2 / 3
        assert found["metrics"]["lp_mean_per_class_recall"] == 2 / 3
        assert any("does not know 1 of the 3 classes, for example cow" in note for note in found["notes"])
        assert (found["task"], found["dataset"], found["items"]) == ("linear_probe", "wds/root", 3)

    def test_images_are_turned_as_those_that_the_head_was_fitted_on(self, tmp_path: Path) -> None:
        head = CHOICE.model_copy(update={"input": CHOICE.input.model_copy(update={"exif": "apply"})})

        for one, output in ((head, "/images-apply"), (CHOICE, "/images-ignore")):
            found = self.evaluated(
                tmp_path / one.name / output[1:], file_of(one), ["cat", "dog"], [0, 0, 1, 1]
            )
            assert found.outputs == {"images": output}

    def test_a_class_that_the_head_does_not_know_is_never_among_the_best_five(self, tmp_path: Path) -> None:
        names = ["cow", "hen", "ox", "cat", "dog"]

        found = self.evaluated(tmp_path, file_of(CHOICE), names, [3, 0, 4, 4]).document()

        assert (found["metrics"]["lp_acc1"], found["metrics"]["lp_acc5"]) == (2 / 3, 2 / 3)

    def test_a_name_that_occurs_twice_is_told_by_its_index(self, tmp_path: Path) -> None:
        head = CHOICE.model_copy(update={"labels": ("cat", "cat (1)")})

        found = self.evaluated(tmp_path, file_of(head), ["cat", "cat"], [0, 0, 1, 1])

        assert found.document()["metrics"]["lp_acc1"] == 1.0

    def test_the_split_that_the_head_was_fitted_on(self, tmp_path: Path) -> None:
        training = HeadTraining(recipe="test", source=f"{tmp_path / 'root'}, split test")
        head = CHOICE.model_copy(update={"training": training})

        found = self.evaluated(tmp_path, file_of(head), ["cat", "dog"], [0, 0, 1, 1]).document()

        assert any("the head was fitted on these items" in note for note in found["notes"])

    @pytest.mark.parametrize(
        ("head", "files", "problem"),
        [
            (file_of(LABELS), {}, "for a head of kind classify; 'taste' is of kind multilabel"),
            (file_of(CHOICE), {"dataset_type": ["retrieval"]}, "its type is retrieval, which no head is for"),
            (
                file_of(CHOICE.model_copy(update={"labels": ("cat", "horse")})),
                {},
                "label 'horse' of head 'taste' is no class of the root",
            ),
            (
                file_of(CHOICE.model_copy(update={"input": HeadInput(dim=2, model="ViT-L-14:openai")})),
                {},
                "takes vectors of ViT-L-14:openai",
            ),
            (
                file_of(CHOICE.model_copy(update={"input": HeadInput(dim=2, model="demo", decode="exact")})),
                {},
                "give `decode=` exact",
            ),
            (
                file_of(
                    CHOICE.model_copy(update={"input": HeadInput(dim=2, model="demo", fingerprint="f" * 16)})
                ),
                {},
                "fingerprint ffff",
            ),
        ],
    )
    def test_what_is_refused(
        self, tmp_path: Path, head: HeadFile, files: Mapping[str, Sequence[str]], problem: str
    ) -> None:
        with pytest.raises(UsageError, match=problem):
            self.evaluated(tmp_path, head, ["cat", "dog"], [0, 0, 1, 1], **files)
