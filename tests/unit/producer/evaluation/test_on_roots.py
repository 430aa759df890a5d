"""Webdataset roots that cannot be evaluated: one error each, before any job is submitted."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

import numpy as np
import pytest

from clipfleet.errors import UsageError
from clipfleet.evaluation.on_roots import EvaluationTask, evaluate_root, require_prompts
from clipfleet.evaluation.roots import read_root
from clipfleet.evaluation.vectors import Embedded, Embedder, FailedItem, ModelOptions
from tests.support.shards import tar_bytes
from tests.support.sources import ids
from tests.support.wds_roots import write_root

TEXTS = {"classnames.txt": ["cat", "dog", "cat"], "zeroshot_classification_templates.txt": ["a {c}"]}

Spoil = Callable[[Path], object]


def npy(values: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(values))
    return file.getvalue()


def no_redis() -> NoReturn:
    pytest.fail("a job would be submitted")


def evaluate(root: Path, task: EvaluationTask = EvaluationTask.AUTO) -> None:
    evaluate_root(read_root(str(root), "test"), Embedder(no_redis, ModelOptions(), "/nowhere"), task=task)


def without(name: str) -> Spoil:
    return lambda root: (root / name).unlink()


def writing(name: str, content: str) -> Spoil:
    return lambda root: (root / name).write_text(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("classnames.txt"), "classnames.txt: does not exist; write it: one class name per line"),
        (writing("classnames.txt", " \n"), "classnames.txt: is empty"),
        (writing("zeroshot_classification_templates.txt", "a cat\n"), r"'a cat' has no \{c\}"),
        (without("test/nshards.txt"), "no split 'test': .*; there is no split with nshards.txt"),
        (without("test/1.tar"), "1.tar: does not exist, but .*nshards.txt says 2"),
        (writing("test/nshards.txt", "1"), "1.tar: is there too, but .*nshards.txt says 1"),
        (writing("test/nshards.txt", "two"), "'two' is not the number of shards"),
        (writing("dataset_type.txt", "pairs"), "'pairs' is not one of classification, multilabel, retrieval"),
        (writing("dataset_type.txt", "multilabel"), "0.tar: s0000000: has no .npy beside the image"),
        (writing("classnames.txt", "cat\n"), "there is no class 1: classnames.txt has 1 names, 0 to 0"),
        (writing("test/1.tar", "x" * 100), "1.tar: not a complete tar file"),
    ],
)
def test_a_root_that_is_incomplete(tmp_path: Path, spoil: Spoil, words: str) -> None:
    shards = [[(b"x", {"cls": b"1"})], [(b"x", {"cls": b"0"})]]
    root = write_root(tmp_path / "root", shards, TEXTS)
    spoil(root)

    with pytest.raises(UsageError, match=words):
        evaluate(root)


@pytest.mark.parametrize(
    ("kind", "beside", "words"),
    [
        ("classification", {"cls": b"cat"}, "s0000000.cls: 'cat' is not the number of a class"),
        ("classification", {"cls": b"-1"}, "there is no class -1"),
        ("multilabel", {"npy": npy([1, 0])}, "not a vector of 0 and 1 for the 3 names"),
        ("multilabel", {"npy": npy([[1, 0, 0]])}, "not a vector of 0 and 1 for the 3 names"),
        ("multilabel", {"npy": npy([1, 0, float("nan")])}, "not a vector of 0 and 1 for the 3 names"),
        ("multilabel", {"npy": b"\x93NUMPY"}, "not a vector of 0 and 1 for the 3 names"),
        ("retrieval", {"txt": b"\n \n"}, "s0000000.txt: has no caption"),
    ],
)
def test_truth_that_says_nothing(tmp_path: Path, kind: str, beside: Mapping[str, bytes], words: str) -> None:
    root = write_root(tmp_path / "root", [[(b"x", beside)]], {**TEXTS, "dataset_type.txt": [kind]})

    with pytest.raises(UsageError, match=words):
        evaluate(root)


@pytest.mark.parametrize("other", [["s0000001.jp2"], []])
def test_a_label_without_an_image_is_no_item_that_disappears(tmp_path: Path, other: list[str]) -> None:
    root = write_root(tmp_path / "root", [[(b"x", {"cls": b"1"})]], TEXTS)
    members = [("s0000000.png", b"x"), ("s0000000.cls", b"1"), ("s0000001.cls", b"0")]
    (root / "test" / "0.tar").write_bytes(tar_bytes([*members, *((name, b"x") for name in other)]))

    with pytest.raises(UsageError, match=r"0.tar: s0000001: has .cls, but no image .*\.jpg"):
        evaluate(root)


def test_no_pattern_is_read_in_the_name_of_a_root(tmp_path: Path) -> None:
    shards = [[(b"x", {"cls": b"1"})] for _ in range(11)]
    for name in ("set[1]", "set{1..3}", "a,{b,c}*"):
        root = read_root(str(write_root(tmp_path / name, shards, TEXTS)), "test")

        assert ids(root.source) == [sample.item_id for sample in root.samples(("cls",))]
        assert len(root.shards) == 11
    with pytest.raises(UsageError, match=r"s3://b/set\[1\]: .* are read as a pattern in S3"):
        read_root("s3://b/set[1]", "test")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", [[(b"x", {"cls": b"1"})]], {**TEXTS, "dataset_type.txt": []})
    for name in ("classnames.txt", "test/nshards.txt"):
        (root / name).write_text((root / name).read_text(), encoding="utf-8-sig")

    assert read_root(str(root), "test").classnames() == ["cat", "dog", "cat"]


@dataclass(frozen=True)
class Vectors:
    """An embedder that knows no blank text."""

    options: ModelOptions

    def images(self, source: str, state: Mapping[str, str]) -> Embedded:
        return Embedded(np.eye(2, dtype=np.float32), np.ones(2, bool), (), "f", "/images")

    def texts(self, texts: Sequence[str]) -> Embedded:
        distinct = list(dict.fromkeys(texts))
        failed = [FailedItem(distinct.index(text), "1", "empty", "no text") for text in distinct if not text]
        features = np.eye(2, dtype=np.float32)[[int(text == "dog") for text in texts]]
        return Embedded(features, np.array([bool(text) for text in texts]), tuple(failed), "f", "/texts")


def test_each_caption_that_fails_is_named_by_its_image(tmp_path: Path) -> None:
    images = [(b"x", {"txt": b"cat\n\ncat"}), (b"x", {"txt": b"\ndog"})]
    root = write_root(tmp_path / "root", [images], {"dataset_type.txt": ["retrieval"]})
    embedder = cast(Embedder, Vectors(ModelOptions()))

    found = evaluate_root(read_root(str(root), "test"), embedder, recalls=(1,))

    shard = root / "test" / "0.tar"
    assert found.failed == (
        FailedItem(0, f"{shard}: s0000000.txt, line 2", "empty", "no text"),
        FailedItem(1, f"{shard}: s0000001.txt, line 1", "empty", "no text"),
    )
    assert found.measured.metrics["text_retrieval_recall@1"] == 1.0


def test_the_task_of_another_kind_of_root(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", [[(b"x", {"cls": b"1"})]], TEXTS)

    with pytest.raises(UsageError, match="its type is classification, so the task is"):
        evaluate(root, EvaluationTask.RETRIEVAL)


def test_classes_of_one_name_are_told_apart_by_index_and_templates_have_either_placeholder(
    tmp_path: Path,
) -> None:
    texts = {**TEXTS, "zeroshot_classification_templates.txt": ["a {c}", "the {}"]}
    write_root(tmp_path / "wds_pets", [[(b"x", {"cls": b"2"})]], texts)

    root = read_root(f"{tmp_path}/wds_pets/test/../", "test")

    assert (root.classnames(), root.templates()) == (["cat", "dog", "cat"], ["a {c}", "the {c}"])
    assert (root.name, root.source) == ("wds/pets", str(tmp_path / "wds_pets" / "test" / "0.tar"))


def test_prompts_of_another_model_are_named_with_what_to_remove() -> None:
    images, texts = (
        Embedded(np.eye(1, dtype=np.float32), np.ones(1, bool), (), name, f"kept/{name}")
        for name in ("f1", "f2")
    )

    with pytest.raises(
        UsageError, match=r"\(f1 and f2\): remove kept/f2 and run it again; .* kept/f1 is stale"
    ):
        require_prompts(texts, images)
