"""A job in one file: what it says, and how mistakes in it are told."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from clipfleet.contract.jobs import DecodeRoute, Exif, Lane, PartFormat, Precision, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.stores import StoreTarget
from clipfleet.contract.versions import FIRST_WITH_HEADS, FIRST_WITH_STORES, FIRST_WITH_THRESHOLDS
from clipfleet.errors import UsageError
from clipfleet.sources import ReadOptions, source_of
from clipfleet.sources.texts import text_source_of
from clipfleet.submit.options import JobOptions, JobSpec, make_job, read_job_spec
from tests.support.heads import head_file

FULL = """\
source: photos/list.csv
output: results/night
model: demo
label_sets:
  animals: [cat, dog]
  colours:
    labels: [red, blue]
    templates: ["something {}", "{}"]
  names:
    file: names.txt
  objects: {preset: imagenet1k}
embedding: true
top_k: 3
precision: fp32
decode: exact
exif: apply
lane: bulk
chunk_size: 64
job_id: nightly
format: jsonl
max_error_rate: 0.2
heads: [heads/taste.head.safetensors, /abs/mood.head.safetensors]
on_finished: myapp.tasks.handle
"""


@pytest.fixture
def write(tmp_path: Path) -> Path:
    (tmp_path / "names.txt").write_text("ann\nbob\n")
    return tmp_path / "job.yaml"


def test_everything_that_may_be_said(write: Path) -> None:
    write.write_text(FULL)

    spec = read_job_spec(write)

    animals, colours, names, objects = spec.made_label_sets()
    assert (animals.name, animals.labels) == ("animals", ("cat", "dog"))
    assert (colours.labels, colours.templates) == (("red", "blue"), ("something {}", "{}"))
    assert names.labels == ("ann", "bob")
    assert objects.preset == "imagenet1k"
    assert (spec.store_embeddings, spec.top_k, spec.chunk_size, spec.job_id) == (True, 3, 64, "nightly")
    assert (spec.precision, spec.decode, spec.lane) == (Precision.FP32, DecodeRoute.EXACT, Lane.BULK)
    assert spec.exif is Exif.APPLY
    assert (spec.part_format, spec.on_finished) == (PartFormat.JSONL, "myapp.tasks.handle")
    assert spec.max_error_rate == 0.2
    assert spec.heads == (write.parent / "heads/taste.head.safetensors", Path("/abs/mood.head.safetensors"))
    assert spec.task is Task.CLASSIFY


@pytest.mark.parametrize("source", ["s3://bucket/list.parquet", "https://h.example/x", "-", "/abs/list.csv"])
def test_paths_count_from_the_file(write: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    write.write_text(FULL)
    spec = read_job_spec(write)
    assert spec.source == str(write.parent / "photos" / "list.csv")
    assert spec.output == str(write.parent / "results" / "night")

    write.write_text(f"source: {source!r}\noutput: redis://\nmodel: ./weights\nembedding: true\n")
    spec = read_job_spec(write)
    assert (spec.source, spec.output) == (source, "redis://")
    assert spec.model == str(write.parent / "weights")


def test_json_is_read_too(write: Path) -> None:
    path = write.with_suffix(".json")
    path.write_text('{\n\t"source": "/p",\n\t"label_sets": {"animals": ["cat", "dog"]}\n}\n')

    assert read_job_spec(path).made_label_sets()[0].labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", r"job.yaml:1: the file must hold keys and values, such as source: \.\.\."),
        ("- a\n", "job.yaml:1: the file must hold keys and values"),
        ("label_sets: {a: [b]}\n", "job.yaml:1: the key 'source' is missing"),
        ("source: p\n", "job.yaml:1: nothing to do"),
        ("source: p\nembedding: true\nlabel_set: {}\n", "yaml:3: .*'label_set', did you mean 'label_sets'"),
        ("source: p\nembedding: true\nzzz: 1\n", "job.yaml:3: .*'zzz'; known are source, output, model"),
        ("source: p\nlabel_sets:\n", "job.yaml:2: label_sets: give at least one label set"),
        ("source: p\nlabel_sets:\n  1a: [b]\n", "job.yaml:3: label_sets.1a: a name begins with a letter"),
        ("source: p\nlabel_sets:\n  a: []\n", "yaml:3: the list is empty: name at least two"),
        ("source: p\nlabel_sets:\n  a:\n    labels:\n    - x\n    - x\n", "yaml:6: label 'x' appears twice"),
        (
            "source: p\nlabel_sets:\n  a:\n  - x\n  - 3\n",
            'job.yaml:5: .*labels.1.name: 3 is a number; quote it: "3"$',
        ),
        (
            "source: p\nlabel_sets:\n  a: [x, true]\n",
            'labels.1.name: true is true or false; quote it: "true"$',
        ),
        ("source: p\nlabel_sets:\n  a: [x, [y]]\n", "labels.1.name: give a text, not a list$"),
        ("source: p\nlabel_sets: [cat, dog]\n", r"2: label_sets: give each .* \{animals: \[cat, dog\]\}$"),
        ("source: p\nlabel_sets: cat\n", "yaml:2: label_sets: give each label set a name, such as"),
        ("source: p\nlabel_sets:\n  a: x\n", "job.yaml:3: label_sets.a: give a list of labels"),
        ("source: p\nlabel_sets:\n  a:\n", "job.yaml:3: label_sets.a: give a list of labels"),
        ("source: p\nlabel_sets: {a: {labels: x}}\n", r"label_sets.a.labels: give a list, such as \[a, b\]"),
        ("source:\nembedding: true\n", "job.yaml:1: the key 'source' is empty"),
        ("source: p\nlabel_sets: {a: {label: [x]}}\n", "unknown key 'label_sets.a.label'"),
        ("source: p\nheads: []\n", "yaml:2: heads: give at least one file of a head, or leave the key out"),
        ("source: p\nheads:\n", "yaml:2: heads: give at least one file of a head"),
        ("source: p\nheads: [3]\n", "job.yaml:2: heads.0"),
        ("source: p\nembedding: true\ntop_k: 0\n", "job.yaml:3: top_k: give at least 1$"),
        ("source: p\nembedding: true\ntop_k: many\n", "job.yaml:3: top_k: give a whole number$"),
        ("source: p\nembedding: true\nmax_error_rate: 2\n", "3: max_error_rate: give at most 1$"),
        (
            "source: p\nembedding: true\njob_id: 20261201\n",
            'job_id: 20261201 is a number; quote it: "20261201"$',
        ),
        ("source: p\nembedding: true\nsample: 0\n", "job.yaml:3: sample: give at least 1$"),
        ("source: p\nembedding: true\nlane: urgent\n", "job.yaml:3: lane: give 'high', 'normal' or 'bulk'$"),
        ("source: p\nembedding: true\nchunk_size: 5000\n", "job.yaml:3: chunk_size: give at most 4096$"),
        ("source: p\nembedding: perhaps\n", "job.yaml:2: embedding: give true or false$"),
        ("source: 7\nembedding: true\n", 'job.yaml:1: source: 7 is a number; quote it: "7"$'),
        ("source: p\nsource: q\n", "job.yaml:2: 'source' appears twice"),
        ('source: p\nembedding: true\noutput: ""\n', "job.yaml:3: output: empty value: give one"),
        ("source: p\nembedding: true\noutput: '-'\n", "job.yaml:3: output: - would be a folder"),
        ("source: [p\n", "not YAML"),
    ],
)
def test_mistakes_name_the_file_the_line_and_the_key(write: Path, content: str, problem: str) -> None:
    write.write_text(content)

    with pytest.raises(UsageError, match=problem) as caught:
        read_job_spec(write)
    assert "\n" not in str(caught.value)


def test_a_file_of_labels_that_cannot_be_used_names_the_set(write: Path) -> None:
    write.write_text("source: p\nlabel_sets: {people: {file: nobody.txt}}\n")
    with pytest.raises(UsageError, match=r"label set 'people': .*nobody\.txt: No such file"):
        read_job_spec(write).made_label_sets()

    (write.parent / "nobody.txt").write_text("ann\nann\n")
    with pytest.raises(UsageError, match="label set 'people': label 'ann' appears twice"):
        read_job_spec(write).made_label_sets()


@pytest.mark.parametrize(
    ("more", "task"),
    [("", Task.CLASSIFY), ("embedding: true\n", Task.EMBED), ("label_sets: {a: [x, y]}\n", Task.CLASSIFY),
     ("label_sets: {a: [x, y]}\nembedding: true\n", Task.CLASSIFY)],
)  # fmt: skip
def test_heads_may_be_all_that_is_asked_for(write: Path, more: str, task: Task) -> None:
    write.write_text(f"source: p\nheads: x.head.safetensors\n{more}")

    spec = read_job_spec(write)

    assert (spec.heads, spec.task) == ((write.parent / "x.head.safetensors",), task)


@pytest.mark.parametrize("task", [Task.CLASSIFY, Task.EMBED])
def test_a_job_with_heads_is_of_a_version_that_older_workers_leave_alone(task: Task) -> None:
    head = head_file(4, 2).of_job

    job = make_job(source_of(["/a.jpg"], ReadOptions()), JobOptions(), task, heads=[head])

    assert (job.schema_version, job.heads) == (FIRST_WITH_HEADS, (head,))


def test_a_set_with_thresholds(write: Path) -> None:
    write.write_text(
        "source: p\nlabel_sets:\n  pets: {kind: multi, labels: [{name: cat, threshold: 0.7}]}\n"
        "  kinds: {preset: imagenet1k-simple, none: true}\n"
    )

    pets, kinds = read_job_spec(write).made_label_sets()

    assert (pets.kind, pets.threshold("cat"), kinds.none, kinds.kind) == ("multi", 0.7, True, "single")


def test_a_program_may_write_names_where_a_set_is_meant() -> None:
    spec = JobSpec.model_validate({"source": "p", "label_sets": {"animals": ["cat", "dog"]}})

    assert spec.made_label_sets()[0].labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"chunk_size": 0}, "chunk_size: 0 is less than 1"),
        ({"lane": "urgent"}, "lane: .*'high'"),
        ({"max_error_rate": 2}, "max_error_rate: 2 is more than 1"),
        ({"max_error_rate": -0.1}, "max_error_rate: -0.1 is less than 0"),
        ({"max_error_rate": math.nan}, "max_error_rate: nan is not a finite number"),
        ({"embeddings": True}, "there is no option embeddings=; did you mean store_embeddings="),
        ({"output": ""}, "output: empty value: give one, or leave the option out"),
        ({"output": "-"}, "output: - would be a folder: name one"),
        ({"chunk_size": "many"}, "chunk_size: 'many' is not a whole number"),
    ],
)
def test_options_that_cannot_be_are_told_as_any_other_mistake(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        JobOptions(**values)
    with pytest.raises(UsageError, match=problem.replace("store_embeddings", "embedding")):
        JobSpec(source="photos", embedding=True, **values)


@pytest.mark.parametrize(
    ("values", "version"), [({}, 1), ({"exif": "apply"}, 2), ({"output": "/out"}, 2)], ids=str
)
def test_a_job_carries_the_lowest_version_that_can_run_it(values: dict[str, Any], version: int) -> None:
    job = make_job(source_of(["/a.jpg"], ReadOptions()), JobOptions(**values), Task.EMBED)

    assert job.schema_version == version
    assert job.exif.value == values.get("exif", "ignore")


# What workers of versions 1 and 2 read of a label set; they refuse anything else.
OLD_KEYS, OLD_PRESETS = {"name", "labels", "templates", "preset"}, (None, "imagenet1k")
PAIR = {"labels": ("a", "b")}


@pytest.mark.parametrize(
    "values",
    [
        PAIR,
        {"preset": "imagenet1k"},
        {"preset": "imagenet1k-simple"},
        {**PAIR, "groups": {"a": "letters"}},
        {**PAIR, "none": True},
        {**PAIR, "kind": "multi"},
        {**PAIR, "kind": "multi", "thresholds": {"a": 0.9}},
    ],
    ids=str,
)
def test_a_job_that_older_workers_cannot_read_is_of_a_version_that_they_leave_alone(
    values: dict[str, Any],
) -> None:
    sets = [LabelSet(name="plain", labels=("x", "y")), LabelSet(**values)]

    job = make_job(source_of(["/a.jpg"], ReadOptions()), JobOptions(), Task.CLASSIFY, sets)

    sent = json.loads(job.model_dump_json())["label_sets"]
    is_readable = all(one.keys() <= OLD_KEYS and one["preset"] in OLD_PRESETS for one in sent)
    assert (job.schema_version < FIRST_WITH_THRESHOLDS) == is_readable


def test_texts_carry_the_fingerprint_of_images_that_were_turned() -> None:
    source = text_source_of(["a"], text_column=None, id_column=None)

    job = make_job(source, JobOptions(exif="apply"), Task.EMBED_TEXT)

    assert (job.exif, job.schema_version) == (Exif.APPLY, 2)


def test_an_output_may_be_a_path() -> None:
    assert JobOptions(output=Path("/out")).output == "/out"


def test_a_job_that_fills_a_store_is_left_alone_by_older_workers(tmp_path: Path) -> None:
    store = StoreTarget(uri="/store", store_id="a" * 32, listed_at=datetime(2026, 1, 1, tzinfo=UTC))
    (tmp_path / "a.png").write_bytes(b"x")

    job = make_job(
        source_of(tmp_path, ReadOptions()), JobOptions(output=tmp_path / "out"), Task.EMBED, store=store
    )

    assert (job.store, job.schema_version) == (store, FIRST_WITH_STORES)
