"""Policies as users write them: what is read, and what their mistakes are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipfleet.contract.heads import HeadKind
from clipfleet.contract.jobs import DEFAULT_MODEL, DecodeRoute, Exif
from clipfleet.contract.policies import Condition
from clipfleet.errors import UsageError
from clipfleet.moderation.policy_files import PolicyFile, read_policy_file
from clipfleet.submit.options import JobOptions
from tests.support.heads import head_file

POLICY: dict[str, Any] = {
    "name": "uploads",
    "model": "demo",
    "label_sets": {"things": {"kind": "multi", "labels": ["cat", "gun"]}},
    "rules": [{"when": {"label": "gun"}, "action": "flag"}],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy.yaml"


def read(path: Path, **changed: Any) -> PolicyFile:
    path.write_text(yaml.safe_dump({**POLICY, **changed}, sort_keys=False))
    return read_policy_file(path)


def flagging(**condition: object) -> dict[str, Any]:
    """The rules of a policy that flags by this condition."""
    return {"rules": [{"when": condition, "action": "flag"}]}


def test_a_file_and_what_it_leaves_out(path: Path) -> None:
    found = read(path).policy

    assert (found.name, found.version, found.model, found.otherwise) == ("uploads", "", "demo", "allow")
    assert (found.decode, found.exif) == ("fast", "ignore")
    assert found.rules[0].when == (Condition(label_set="things", label="gun"),)
    without = {name: value for name, value in POLICY.items() if name != "model"}
    path.with_suffix(".json").write_text(json.dumps(without))
    assert read_policy_file(str(path.with_suffix(".json"))).policy.model == DEFAULT_MODEL


def test_the_same_policy_has_the_same_hash_however_it_is_written(path: Path) -> None:
    plain = read(path).policy
    conditions = [{"label": "gun", "label_set": "things"}]

    assert read(path, rules=[{"when": conditions, "action": "flag"}]).policy.sha256 == plain.sha256
    assert read(path, otherwise="review").policy.sha256 != plain.sha256


def test_label_sets_of_files_and_heads_lie_beside_the_policy(path: Path) -> None:
    (path.parent / "labels.yaml").write_text(
        "kind: multi\nname: other\nlabels: [{name: gun, threshold: 0.9}, cat]\n"
    )
    (path.parent / "places.txt").write_text("beach\nstreet\n")
    head = head_file(4, 1, name="taste", kind=HeadKind.REGRESS)
    (path.parent / "taste.head.safetensors").write_bytes(head.data)

    found = read(
        path,
        label_sets={"things": {"file": "labels.yaml"}, "places": {"kind": "multi", "file": "places.txt"}},
        heads="taste.head.safetensors",
        rules=[{"when": [{"label": "gun"}, {"head": "taste", "below": 4}], "action": "review"}],
    )

    assert [(one.name, one.labels) for one in found.policy.label_sets] == [
        ("things", ("gun", "cat")), ("places", ("beach", "street")),
    ]  # fmt: skip
    assert found.policy.label_sets[0].threshold("gun") == 0.9
    assert [one.name for one in found.policy.heads] == ["taste"]
    assert found.heads[0].of_job == found.policy.heads[0]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"rules": []}, "rules"),
        (flagging(label="knife"), "rule 1: no label set has a label 'knife'"),
        ({"rules": [{"when": {"label": "gun"}, "action": "block"}]}, "action"),
        (flagging(label="gun", atleast=1), "atleast"),
        (flagging(label="gun", at_least=50), "scores of labels are from 0 to 1"),
        ({"label_sets": {"things": ["cat", "gun"]}}, "softmax"),
        ({"label_sets": {"things": {"kind": "multi", "labels": ["cat", "cat"]}}}, "appears twice"),
        ({"label_sets": {"a": POLICY["label_sets"]["things"], "b": POLICY["label_sets"]["things"]}},
         "rule 1: 2 label sets have a label 'gun': name one as label_set"),
        ({"heads": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"name": "my uploads"}, "name"),
        ({"rules": [{"when": [], "action": "flag"}]}, "rule 1"),
        ({"rules": [{"name": "x" * 201, "when": {"label": "gun"}, "action": "flag"}]}, "rule 1"),
        ({"rules": [{"when": {"label": one}, "action": "flag", "name": "a"} for one in ("cat", "gun")]},
         "two rules are named 'a'"),
        ({"rules": [{"when": {"label": "cat"}, "action": "flag", "name": "rule 2"},
                    {"when": {"label": "gun"}, "action": "flag"}]}, "two rules are named 'rule 2'"),
        ({"model": "no such:"}, "model"),
        ({"labels": ["cat"]}, "labels"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_name_the_file_and_what_is_wrong(path: Path, changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(path, **changed)

    assert str(path.parent) in str(raised.value)
    assert problem in str(raised.value)


@pytest.mark.parametrize("text", ["", "- a\n", "name: [", "{}", "\0"])
def test_what_is_no_policy(path: Path, text: str) -> None:
    path.write_text(text)

    with pytest.raises(UsageError, match=r"policy\.yaml"):
        read_policy_file(path)


def test_a_job_takes_the_model_of_its_policy(path: Path) -> None:
    file = read(path, decode="exact", exif="apply")

    found = file.described(JobOptions(output="/out", lane="high"))

    assert (found.model, found.decode, found.exif) == ("demo", DecodeRoute.EXACT, Exif.APPLY)
    assert (found.output, found.lane) == ("/out", "high")
    with pytest.raises(UsageError, match="policy 'uploads' is for demo: leave the option out"):
        file.described(JobOptions(model="ViT-B-16:openai"))
