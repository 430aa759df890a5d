"""Labels as users give them: names, sets of names, presets, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipfleet.commands.submitting import chosen_label_sets
from clipfleet.contract.label_sets import DEFAULT_TEMPLATE, LabelSet, Preset
from clipfleet.errors import UsageError
from clipfleet.labels.sets import label_sets_of, read_label_set, warnings_of

pytestmark = pytest.mark.usefixtures("folder")


class TestFromPrograms:
    def test_names_are_one_set(self) -> None:
        (made,) = label_sets_of(["cat", "dog"])

        assert (made.name, made.labels, made.templates) == ("labels", ("cat", "dog"), (DEFAULT_TEMPLATE,))

    def test_names_by_the_name_of_their_set_keep_their_order(self) -> None:
        made = label_sets_of({"colours": ["red", "blue"], "animals": ["cat"]}, ["a {}", "the {}"])

        assert {one.name: one.labels for one in made} == {"colours": ("red", "blue"), "animals": ("cat",)}
        assert made[0].name == "colours"
        assert {one.templates for one in made} == {("a {}", "the {}")}

    def test_sets_are_taken_as_they_are_and_may_be_renamed(self) -> None:
        animals = LabelSet(name="animals", labels=("cat",), templates=("{}",))

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
            (["a"], ["photo"], "template 'photo' must contain"),
            ("cat,dog", [], "'cat,dog' is a single string: give a list"),
            ({"s": "cat"}, [], "label set 's': 'cat' is a single string"),
            ({"s": []}, [], "label set 's': there are no labels"),
            ({"1": ["a"]}, [], "label set '1': its name must begin with a letter"),
            ({"a b": LabelSet(labels=("a",))}, [], "label set 'a b': its name"),
            ([LabelSet(labels=("a",))], ["{}"], "templates apply to labels"),
            ([LabelSet(labels=("a",)), "b"], [], "label"),
            ([1, 2], [], "labels.0: 1 is not text"),
        ],
    )
    def test_what_cannot_be_used_is_told(self, labels: Any, templates: list[str], problem: str) -> None:
        with pytest.raises(UsageError, match=problem):
            label_sets_of(labels, templates)


def test_a_set_of_one_label_is_warned_of() -> None:
    (alone,) = warnings_of(label_sets_of(["cat"]))
    (beside,) = warnings_of(label_sets_of({"animals": ["cat", "dog"], "colours": ["red"]}))

    assert "there is one label only: every image gets 'cat', with score 1.000" in alone
    assert "label set 'colours' has one label only: every image gets 'red'" in beside
    assert not [*warnings_of(label_sets_of("imagenet1k"))]


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("pets.yaml", "labels: [cat, dog]\n", {"name": "pets", "labels": ("cat", "dog")}),
            ("pets.yml", "- cat\n- dog\n", {"name": "pets", "labels": ("cat", "dog")}),
            ("pets.JSON", '["cat", "dog"]', {"name": "pets", "labels": ("cat", "dog")}),
            ("my-pets 2.json", '{"labels": ["cat"]}', {"name": "my_pets_2", "labels": ("cat",)}),
            ("x.yaml", "name: pets\nlabels: [cat]", {"name": "pets"}),
            ("x.yaml", "labels: [cat]\ntemplates: a {}", {"templates": ("a {}",)}),
            ("x.yaml", 'labels: [cat]\ntemplates: ["a {}", "{}"]', {"templates": ("a {}", "{}")}),
            ("x.yaml", "labels: [yes, no, on, 2020-01-01]", {"labels": ("yes", "no", "on", "2020-01-01")}),
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

    def test_the_name_of_a_preset_is_enough(self) -> None:
        assert read_label_set("imagenet1k") == LabelSet(name="imagenet1k", preset=Preset.IMAGENET1K)

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("", "x.yaml:1: give a list of labels, or the keys labels"),
            ("labels:\n", "x.yaml:1: labels: give a list"),
            ("labels: []\n", "x.yaml:1: give one of labels, file and preset"),
            ("labels: [a]\nfile: b.txt\n", "give one of labels, file and preset"),
            ("labels:\n  - cat\n  - 7\n", 'x.yaml:3: labels.1.name: 7 is a number; quote it: "7"'),
            ("labels:\n- true\n", 'x.yaml:2: labels.0.name: true is true or false; quote it: "true"'),
            ("labels: [a, a]\n", "x.yaml:1: label 'a' appears twice"),
            ("labels: [a]\ntemplates: photo\n", "template 'photo' must contain"),
            ("labels: [a]\ntemplate: a {}\n", "x.yaml:2: unknown key 'template', did you mean 'templates'"),
            ("labels: [a]\nlabels: [b]\n", "x.yaml:2: 'labels' appears twice"),
            ("labels: [a\n", "x.yaml:2: not YAML"),
            ("labels: [a]\n\tx: 1\n", "x.yaml:2: not YAML"),
            ("labels: [!!python/object:os.system a]\n", "not YAML: could not determine a constructor"),
            ("preset: imagenet22k\n", "x.yaml:1: preset: .*imagenet1k"),
            ("labels: [a]\nname: 1a\n", "x.yaml.*'1a' cannot name a label set"),
            ("file: missing.txt\n", "missing.txt: No such file"),
            ("{[1, 2]: a}\n", "x.yaml:1: a key must be a word"),
        ],
    )
    def test_mistakes_name_the_file_and_the_line(self, folder: Path, content: str, problem: str) -> None:
        (folder / "x.yaml").write_text(content)

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
        (folder / "pets.json").write_text(json.dumps(["cat"]))

        made = chosen_label_sets("red,blue", ["pets.json", "imagenet1k"], ["{}"])

        assert [one.name for one in made] == ["labels", "pets", "imagenet1k"]
        assert [one.templates for one in made[:2]] == [("{}",), (DEFAULT_TEMPLATE,)]

    def test_no_labels_at_all(self) -> None:
        with pytest.raises(UsageError, match=r"--labels A,B,C.*--label-set"):
            chosen_label_sets(None, [], [])

    def test_templates_without_labels(self) -> None:
        with pytest.raises(UsageError, match="--template goes with --labels"):
            chosen_label_sets(None, ["imagenet1k"], ["{}"])
