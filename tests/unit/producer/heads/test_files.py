"""The file of a head: what it holds, that torch reads it, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import load

from clipfleet.contract.heads import Activation, HeadKind, HeadTraining
from clipfleet.errors import UsageError
from clipfleet.heads.arithmetic import head_scores
from clipfleet.heads.files import METADATA_KEY, make_head, parse_head, read_head, write_head
from tests.support.heads import head_file, head_of, numbers_of


def test_a_head_comes_back_as_it_was_written(tmp_path: Path) -> None:
    made = head_file(8, 5, 3, activation=Activation.RELU)
    path = tmp_path / "taste.head.safetensors"

    write_head(made, path)

    assert read_head(path) == made
    assert read_head(path).of_job == made.of_job
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "taste.head.safetensors"
    place.mkdir()

    with pytest.raises(UsageError, match=r"taste\.head\.safetensors: Is a directory"):
        write_head(head_file(8, 3), place)

    assert list(tmp_path.iterdir()) == [place]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other, place = tmp_path / "other", tmp_path / "taste.head.safetensors"
    other.write_text("kept")
    place.symlink_to(other)

    write_head(head_file(8, 3), place)

    assert (other.read_text(), place.is_symlink()) == ("kept", False)


def test_the_same_numbers_give_the_same_file() -> None:
    assert head_file(8, 3).of_job.sha256 == head_file(8, 3).of_job.sha256
    assert head_file(8, 3).of_job.sha256 != head_file(8, 3, seed=1).of_job.sha256


def test_a_job_carries_nothing_of_each_label() -> None:
    """A report on 1,000 labels would make the job larger than 100 KB, in Redis and in each output."""
    labels = tuple(f"label {number}" for number in range(1000))
    training = HeadTraining(
        recipe="test", n=9, classes=dict.fromkeys(labels, 9), cv={"classes": list(labels)}, source="here"
    )

    made = head_file(4, 1000, labels=labels, training=training)

    assert made.head.training == training
    assert made.of_job.head.training == HeadTraining(recipe="test", n=9, source="here")
    assert made.of_job.head.model_copy(update={"training": training}) == made.head
    assert len(made.of_job.model_dump_json()) < 20_000


@pytest.mark.parametrize("activation", Activation)
def test_torch_reads_it_into_a_sequential(activation: Activation) -> None:
    made = head_file(8, 6, 5, 3, activation=activation)
    relu = [torch.nn.ReLU()] if activation is Activation.RELU else []
    module = torch.nn.Sequential(
        torch.nn.Linear(8, 6), *relu, torch.nn.Linear(6, 5), *relu, torch.nn.Linear(5, 3)
    )

    module.load_state_dict(load(made.data))


HEAD = head_of(8, 5, 3)
NUMBERS = numbers_of(HEAD, 8, 5, 3)
NEWER = HEAD.model_dump_json().replace('"version":1', '"version":2')
NAN = np.full(3, np.nan, np.float32)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"0.weight": np.ones((5, 9))}, r"0\.weight has the shape \[5, 9\], \[5, 8\] fits"),
        ({"0.weight": np.ones(5)}, r"0\.weight has the shape \[5\]"),
        ({"1.weight": np.ones((3, 6))}, r"1\.weight has the shape \[3, 6\], \[3, 5\] fits"),
        ({"1.bias": np.ones(4)}, r"1\.bias has the shape \[4\], \[3\] fits"),
        ({"1.weight": np.ones((2, 5)), "1.bias": np.ones(2)}, "2 outputs for 3 labels"),
        ({"1.bias": NAN}, r"1\.bias holds a number that is not finite"),
        ({"1.weight": np.full((3, 5), np.inf)}, r"1\.weight holds a number that is not finite"),
        ({"2.weight": np.ones((3, 3))}, r"tensor '2\.weight' too many"),
        ({"input.mean": np.ones(8)}, r"has no tensor 'input\.std'"),
        ({"input.mean": np.ones(8), "input.std": np.zeros(8)}, r"input\.std must be above 0"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: dict[str, np.ndarray], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        make_head(HEAD, NUMBERS | change)


def test_numbers_of_another_type_are_refused() -> None:
    whole = {name: one.astype(np.int32) for name, one in NUMBERS.items()}

    with pytest.raises(UsageError, match="I32: a head has numbers of type F16, F32 or F64"):
        parse_head(save(whole, {METADATA_KEY: HEAD.model_dump_json()}), "x")


def test_half_and_double_precision_are_read() -> None:
    for kind in (np.float16, np.float64):
        numbers = {name: one.astype(kind) for name, one in NUMBERS.items()}

        found = parse_head(save(numbers, {METADATA_KEY: HEAD.model_dump_json()}), "x")

        assert {one.dtype for one in found.arrays().values()} == {np.dtype(kind)}


SCALED = {"input.mean": np.zeros(8), "input.std": np.ones(8)}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"1.bias": np.full(3, 1e39)}, r"1\.bias holds a number that is not finite .*float32"),
        (SCALED | {"input.std": np.full(8, 1e-60)}, r"input\.std must be above 0 in float32"),
    ],
)
def test_double_precision_has_to_fit_into_single(change: dict[str, np.ndarray], problem: str) -> None:
    numbers = {name: one.astype(np.float64) for name, one in (NUMBERS | change).items()}

    with pytest.raises(UsageError, match=problem):
        parse_head(save(numbers, {METADATA_KEY: HEAD.model_dump_json()}), "x")


@pytest.mark.parametrize(
    "change",
    [
        {"0.weight": np.full((5, 8), 3e38)},
        {"0.weight": np.full((5, 8), 1e25), "1.weight": np.full((3, 5), 1e25)},
        {"1.weight": np.full((3, 5), 3e38), "1.bias": np.full(3, 3e38)},
        SCALED | {"input.std": np.full(8, 1e-39)},
        SCALED | {"input.mean": np.full(8, 3e38)},
    ],
)
def test_scores_that_single_precision_does_not_have_are_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(UsageError, match="are so large that a score may not be finite"):
        make_head(HEAD, NUMBERS | change)


def test_large_numbers_whose_scores_are_finite_are_taken() -> None:
    wide = np.full((5, 8), 1e18)

    made = make_head(HEAD, NUMBERS | {"0.weight": wide, "1.weight": np.full((3, 5), -1e18)})

    assert np.isfinite(head_scores(made, np.full((1, 8), 8**-0.5, np.float32))).all()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not a safetensors file"),
        (pickle.dumps({"weight": [1.0]}), "not a safetensors file; `clipfleet head import`"),
        (head_file(8, 3).data[:-1], "not a safetensors file"),
        (save(NUMBERS), "`clipfleet head import` makes a head"),
        (save(NUMBERS, {METADATA_KEY: "{}"}), "not a head that this version can read"),
        (
            save(NUMBERS, {METADATA_KEY: HEAD.model_dump_json().replace('"version":1', '"version":2')}),
            "version",
        ),
    ],
)
def test_what_is_no_head_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_head(data, "strange.safetensors")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.head\.safetensors: No such file"):
        read_head(tmp_path / "x.head.safetensors")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"labels": ("a", "a", "b")}, "appears twice"),
        ({"labels": ("a", " ", "b")}, "label number 2 is empty"),
        ({"kind": HeadKind.REGRESS, "output": "none"}, "one output"),
        ({"output": "sigmoid"}, "softmax is for kind classify"),
        ({"activations": ("none", "relu")}, "last activation must be none"),
        ({"thresholds": {"kind 0": 0.5}}, "always chooses"),
        ({"kind": HeadKind.MULTILABEL, "output": "sigmoid", "thresholds": {"x": 0.5}}, "no label 'x'"),
        ({"name": "no name"}, "pattern"),
        ({"labels": ("a", "b" * 1001, "c")}, "1000 characters"),
        ({"licence": "x" * 1001}, "1000 characters"),
        ({"input": {"dim": 8, "model": "x" * 1001}}, "1000 characters"),
        ({"training": {"recipe": "x" * 1001}}, "1000 characters"),
        ({"training": {"recipe": "x", "source": "x" * 1001}}, "1000 characters"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        head_of(8, 5, 3, **values)
