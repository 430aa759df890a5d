"""Webdataset roots that cannot be evaluated: one error each, before any job is submitted."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from clipfleet.errors import UsageError
from clipfleet.evaluation.on_roots import EvaluationTask, evaluate_root, require_prompts
from clipfleet.evaluation.roots import read_root
from clipfleet.evaluation.vectors import Embedded, Embedder, ModelOptions
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
