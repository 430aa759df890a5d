"""The label sets of an output: from its job, and those of presets from its manifest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clipfleet.contract.jobs import REDIS_OUTPUT
from clipfleet.contract.label_sets import LabelKind, LabelSet, Preset
from clipfleet.errors import OutputDamagedError, UsageError
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.label_sets import label_sets_of
from clipfleet.results.part_rows import PartRows
from tests.support.jobs import make_job, place_job

PETS = LabelSet(name="pets", labels=("cat", "dog"), kind=LabelKind.MULTI, thresholds={"cat": 0.7})
PRESET = LabelSet(name="things", preset=Preset.IMAGENET1K, none=True)


def finished(output: FolderOutput, *stored: dict[str, Any], label_sets: tuple[LabelSet, ...]) -> PartRows:
    """An output of these label sets, whose manifest holds what is stored."""
    place_job(output, make_job(output.uri, labels=("x",), label_sets=label_sets))
    manifest = {"job": {"job_id": "j"}, "finished_at": "2026-11-24T13:00:30Z", "parts": []}
    output.replace(objects.MANIFEST, json.dumps(manifest | {"label_sets": stored}).encode())
    return PartRows(output)


def in_full(labels: list[str]) -> dict[str, Any]:
    return {**PRESET.model_dump(mode="json"), "labels": labels, "templates": ["a {}"]}


def test_those_of_the_job_need_no_manifest(output: FolderOutput) -> None:
    place_job(output, make_job(output.uri, labels=("x",), label_sets=(PETS,)))

    assert label_sets_of(PartRows(output)) == (PETS,)


def test_a_preset_has_the_labels_that_are_stored_with_the_output(output: FolderOutput) -> None:
    stored = in_full(["tench", "goldfish"])
    reader = finished(output, PETS.model_dump(mode="json"), stored, label_sets=(PETS, PRESET))

    assert label_sets_of(reader) == (
        PETS, LabelSet(name="things", labels=("tench", "goldfish"), templates=("a {}",), none=True),
    )  # fmt: skip


def test_labels_that_appear_twice_are_named(output: FolderOutput) -> None:
    reader = finished(output, in_full(["missile", "cat", "sunglasses", "missile"]), label_sets=(PRESET,))

    with pytest.raises(
        UsageError, match=r"imagenet1k has labels that appear twice \(missile\): use a label set"
    ):
        label_sets_of(reader)


@pytest.mark.parametrize("stored", [{"name": "other"}, {"name": "things", "preset": "imagenet1k"}])
def test_a_damaged_manifest_is_one_line(output: FolderOutput, stored: dict[str, Any]) -> None:
    with pytest.raises(OutputDamagedError, match=r"label set things is (not among|damaged)"):
        label_sets_of(finished(output, stored, label_sets=(PRESET,)))


def test_what_is_not_stored_is_said(output: FolderOutput, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="no job that this version can read"):
        label_sets_of(PartRows(output))
    place_job(output, make_job(output.uri, labels=("x",), label_sets=(PRESET,)))
    with pytest.raises(UsageError, match=r"labels of imagenet1k are not stored here; the end of the job"):
        label_sets_of(PartRows(output))
    other = FolderOutput(tmp_path / "vectors")
    place_job(other, make_job(other.uri))
    with pytest.raises(UsageError, match="no label set has labelled its rows: run `clipfleet relabel`"):
        label_sets_of(PartRows(other))
    in_redis = FolderOutput(tmp_path / "redis")
    place_job(in_redis, make_job(REDIS_OUTPUT, labels=("x",), label_sets=(PRESET,)))
    with pytest.raises(UsageError, match="are not stored here; Redis has none: give an `output=`"):
        label_sets_of(PartRows(in_redis))
