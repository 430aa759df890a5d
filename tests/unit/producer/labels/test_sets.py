"""Labels as users give them: names, sets of names, presets, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipfleet.commands.submitting import chosen_label_sets
from clipfleet.contract.jobs import read_job
from clipfleet.contract.label_sets import DEFAULT_BACKGROUND, DEFAULT_TEMPLATE, LabelKind, LabelSet, Preset
from clipfleet.errors import UsageError
from clipfleet.labels.sets import label_sets_of, read_label_set
from tests.support.jobs import make_job

pytestmark = pytest.mark.usefixtures("folder")

CERTIFICATE = json.dumps(
    {
        "label": "a", "threshold": 0.5, "promise": {"claim": "precision", "value": 0.9}, "confidence": 0.9,
        "looks": [{"marks": 1, "wrong": 0}], "verdict": "not yet", "output": "/out", "job_id": "j",
        "model_fingerprint": "m", "label_set_hash": "h", "at": "2026-11-24T12:00:00Z",
    }
)  # fmt: skip


class TestFromPrograms:
    def test_names_are_one_set(self) -> None:
        (made,) = label_sets_of(["cat", "dog"])

        assert (made.name, made.labels, made.templates) == ("labels", ("cat", "dog"), (DEFAULT_TEMPLATE,))

    def test_names_by_the_name_of_their_set_keep_their_order(self) -> None:
        made = label_sets_of({"colours": ["red", "blue"], "animals": ["cat", "cow"]}, ["a {}", "the {}"])

        assert {one.name: one.labels for one in made} == {
            "colours": ("red", "blue"),
            "animals": ("cat", "cow"),
        }
        assert made[0].name == "colours"
        assert {one.templates for one in made} == {("a {}", "the {}")}

    def test_sets_are_taken_as_they_are_and_may_be_renamed(self) -> None:
        animals = LabelSet(name="animals", labels=("cat", "cow"), templates=("{}",))

        assert label_sets_of(animals) == (animals,)
        assert label_sets_of([animals]) == (animals,)
        assert label_sets_of({"pets": animals}) == (animals.model_copy(update={"name": "pets"}),)

    @pytest.mark.parametrize("labels", ["imagenet1k", Preset.IMAGENET1K, LabelSet(preset=Preset.IMAGENET1K)])
    def test_a_preset(self, labels: Any) -> None:
        (made,) = label_sets_of(labels)

        assert (made.preset, made.labels, made.templates) == (Preset.IMAGENET1K, (), ())

    @pytest.mark.parametrize(
        ("labels", "templates", "problem"),
        [
            ([], [], "there are no labels"),
            ({}, [], "no label set"),
            (["a", "a"], [], "'a' appears twice"),
            (["a", " "], [], "label number 2 is empty"),
            (["a", "b"], ["photo"], "template 'photo' must contain"),
            ("cat,dog", [], "'cat,dog' is a single string: give a list"),
            ({"s": "cat"}, [], "label set 's': 'cat' is a single string"),
            ({"s": []}, [], "label set 's': there are no labels"),
            ({"1": ["a"]}, [], "label set '1': its name must begin with a letter"),
            ({"a b": LabelSet(labels=("a", "b"))}, [], "label set 'a b': its name"),
            ([LabelSet(labels=("a", "b"))], ["{}"], "`templates=` is for labels given as names"),
            ("imagenet1k", ["{}"], "`templates=` is for labels given as names"),
            (["cat"], [], "'cat' is the only label.*score 1.000: ask with `none=` whether"),
            (LabelSet(labels=("cat",)), [], "'cat' is the only label"),
            ({"animals": ["cat", "dog"], "colours": ["red"]}, [], "label set 'colours': 'red' is the only"),
            ([LabelSet(labels=("a",)), "b"], [], "label"),
            ([1, 2], [], "labels.0: 1 is not text"),
        ],
    )
    def test_what_cannot_be_used_is_told(self, labels: Any, templates: list[str], problem: str) -> None:
        with pytest.raises(UsageError, match=problem):
            label_sets_of(labels, templates)


class TestThresholds:
    @pytest.mark.parametrize("labels", [["cat"], {"pets": ["cat"]}, "imagenet1k"])
    @pytest.mark.parametrize("rule", ["multi", "none"])
    def test_sets_given_as_names_get_them(self, labels: Any, rule: str) -> None:
        (made,) = label_sets_of(labels, **{rule: True})

        assert (made.kind is LabelKind.MULTI, made.none) == (rule == "multi", rule == "none")
        assert made.has_thresholds and made.background == DEFAULT_BACKGROUND

    def test_a_set_that_is_ready_made_has_its_own(self) -> None:
        for rule in ("multi", "none"):
            with pytest.raises(UsageError, match=f"`{rule}=` is for labels given as names: a label set has"):
                label_sets_of(LabelSet(labels=("cat", "dog")), **{rule: True})
            with pytest.raises(UsageError, match=f"`{rule}=` is for labels given as names"):
                label_sets_of({"a": ["cat"], "b": LabelSet(labels=("cat", "dog"))}, **{rule: True})

    def test_both_have_no_meaning(self) -> None:
        with pytest.raises(UsageError, match=r"`none` is for sets of kind single.*leave it out"):
            label_sets_of(["cat"], multi=True, none=True)

    def test_old_jobs_with_one_label_are_read(self) -> None:
        assert read_job(make_job(labels=("cat",)).model_dump_json()).label_sets[0].labels == ("cat",)


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("pets.yaml", "labels: [cat, dog]\n", {"name": "pets", "labels": ("cat", "dog")}),
            ("pets.yml", "- cat\n- dog\n", {"name": "pets", "labels": ("cat", "dog")}),
            ("pets.JSON", '["cat", "dog"]', {"name": "pets", "labels": ("cat", "dog")}),
            ("my-pets 2.json", '{"labels": ["cat", "cow"]}', {"name": "my_pets_2", "labels": ("cat", "cow")}),
            ("x.yaml", "name: pets\nlabels: [cat, cow]", {"name": "pets"}),
            ("x.yaml", "labels: [cat, cow]\ntemplates: a {}", {"templates": ("a {}",)}),
            ("x.yaml", 'labels: [cat, cow]\ntemplates: ["a {}", "{}"]', {"templates": ("a {}", "{}")}),
            ("x.yaml", "labels: [yes, no, on, 2020-01-01]", {"labels": ("yes", "no", "on", "2020-01-01")}),
            ("x.yaml", "labels: [' cat ', {name: 'sea cow '}]", {"labels": ("cat", "sea cow")}),
            ("x.yaml", "preset: imagenet1k", {"preset": Preset.IMAGENET1K}),
            ("x.yaml", "file: names.txt", {"labels": ("żółw", "black dog")}),
        ],
    )
    def test_yaml_and_json(self, folder: Path, name: str, content: str, expected: dict[str, Any]) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / name).write_text(content)
        (folder / "sub" / "names.txt").write_text("żółw\n\n black dog \n")

        made = read_label_set(f"sub/{name}")

        assert {field: getattr(made, field) for field in expected} == expected

    @pytest.mark.parametrize("preset", list(Preset))
    def test_the_name_of_a_preset_is_enough(self, preset: Preset) -> None:
        expected = LabelSet(name=preset.replace("-", "_"), preset=preset)

        assert read_label_set(str(preset)) == expected
        assert label_sets_of(str(preset)) == chosen_label_sets(None, [str(preset)], []) == (expected,)

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("", "x.yaml:1: give a list of labels, or the keys labels"),
            ("labels:\n", "x.yaml:1: labels: give a list"),
            ("labels: []\n", "x.yaml:1: the list is empty: name at least two, or one and `none: true`"),
            ("labels: [a]\nfile: b.txt\n", "give one of labels, file and preset"),
            ("labels:\n  - cat\n  - 7\n", 'x.yaml:3: labels.1.name: 7 is a number; quote it: "7"'),
            ("labels:\n- true\n", 'x.yaml:2: labels.0.name: true is true or false; quote it: "true"'),
            ("labels: [a, a]\n", "x.yaml:1: label 'a' appears twice"),
            ("labels: [a, b]\ntemplates: photo\n", "template 'photo' must contain"),
            ("labels: [a]\ntemplate: a {}\n", "x.yaml:2: unknown key 'template', did you mean 'templates'"),
            ("labels: [a]\nlabels: [b]\n", "x.yaml:2: 'labels' appears twice"),
            ("labels: [a\n", "x.yaml:2: not YAML"),
            ("labels: [a]\n\tx: 1\n", "x.yaml:2: not YAML"),
            ("labels: [!!python/object:os.system a]\n", "not YAML: could not determine a constructor"),
            ("preset: imagenet22k\n", "x.yaml:1: preset: .*imagenet1k"),
            ("labels: [a, b]\nname: 1a\n", "x.yaml.*'1a' cannot name a label set"),
            ("file: missing.txt\n", "missing.txt: No such file"),
            ("{}\n", "x.yaml:1: give one of labels, file and preset"),
            ("labels: [a]\n", "x.yaml:1: 'a' is the only label.*: add `none: true` to ask whether"),
            ("file: one.txt\n", "x.yaml: 'cat' is the only label"),
            ("kind: multi\nlabels:\n- a\n- b\n- a\n", "x.yaml:5: label 'a' appears twice"),
            ("labels:\n- a\n- name: b\n  threshold: 0.5\n", "x.yaml:4: `threshold` has no .* add `none: t"),
            ("labels:\n- name: a\n  not: [x]\n- b\n", "x.yaml:3: `not` has no meaning for a softmax"),
            ("labels: [a, b]\nbackground: [x]\n", "x.yaml:2: `background` has no meaning for a softmax"),
            (f"labels: [a, b]\ncertificates: [{CERTIFICATE}]\n", "x.yaml:2: `certificates` has no meaning"),
            ("none: true\nlabels: [a]\nbackground: []\n", "x.yaml:3: the background is empty: leave"),
            ("none: true\nlabels: [a]\nbackground:\n", "x.yaml:3: the background is empty: leave"),
            ("labels: [a, b]\nbackground:\n", "x.yaml:2: `background` has no meaning for a softmax"),
            ("labels: [cat, 'cat ']\n", "x.yaml:1: label 'cat' appears twice"),
            ("none: true\nlabels:\n- name: a\n  not: ['']\n", "x.yaml:1: a `not` prompt of 'a' is empty"),
            ('labels: [a, {name: b, group: "\\ud800"}]\n', "x.yaml:1: .*is not UTF-8"),
            ("none: true\nlabels: [a]\nbackground: ['']\n", "x.yaml:1: the background is empty"),
            ("labels: [a]\nkind: multi\nnone: true\n", "x.yaml:3: `none` is for sets of kind single"),
            ("none: true\nlabels:\n- name: a\n  threshold: .nan\n", "x.yaml:4: .*threshold: give a number"),
            ("none: true\nlabels:\n- name: a\n  treshold: 1\n", "x.yaml:4: unknown key 'labels.0.treshold'"),
            ("kind: many\nlabels: [a]\n", "x.yaml:1: kind: give 'single' or 'multi'"),
            ("{[1, 2]: a}\n", "x.yaml:1: a key must be a word"),
        ],
    )
    def test_mistakes_name_the_file_and_the_line(self, folder: Path, content: str, problem: str) -> None:
        (folder / "x.yaml").write_text(content)
        (folder / "one.txt").write_text("cat\n")

        with pytest.raises(UsageError, match=problem) as caught:
            read_label_set("x.yaml")
        assert "\n" not in str(caught.value)

    def test_a_file_that_cannot_be_read_is_told(self, folder: Path) -> None:
        (folder / "latin.yaml").write_bytes(b"labels: [caf\xe9]")
        with pytest.raises(UsageError, match=r"missing\.yaml: No such file"):
            read_label_set("missing.yaml")
        with pytest.raises(UsageError, match=r"latin\.yaml: not UTF-8"):
            read_label_set("latin.yaml")
        with pytest.raises(UsageError, match=r"imagenet: neither imagenet1k, imagenet1k-simple nor a \.yaml"):
            read_label_set("imagenet")


class TestCommandLine:
    def test_labels_and_files_add_up(self, folder: Path) -> None:
        (folder / "pets.json").write_text(json.dumps(["cat", "cow"]))

        made = chosen_label_sets("red,blue", ["pets.json", "imagenet1k"], ["{}"])

        assert [one.name for one in made] == ["labels", "pets", "imagenet1k"]
        assert [one.templates for one in made[:2]] == [("{}",), (DEFAULT_TEMPLATE,)]

    def test_no_labels_at_all(self) -> None:
        with pytest.raises(UsageError, match=r"--labels A,B,C.*--label-set"):
            chosen_label_sets(None, [], [])

    @pytest.mark.parametrize(("option", "key"), [("multi", "kind: multi"), ("none", "none: true")])
    def test_rules_are_for_names_and_presets_not_for_files(self, folder: Path, option: str, key: str) -> None:
        made = chosen_label_sets("cat", ["imagenet1k"], [], **{option: True})

        assert [one.has_thresholds for one in made] == [True, True]
        with pytest.raises(UsageError, match=f"--{option} does not apply to pets.json: write `{key}` into"):
            chosen_label_sets("cat", ["pets.json"], [], **{option: True})

    def test_templates_without_labels(self) -> None:
        with pytest.raises(UsageError, match="--template goes with --labels"):
            chosen_label_sets(None, ["imagenet1k"], ["{}"])
