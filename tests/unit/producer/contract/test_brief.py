"""A job in a few words."""

from __future__ import annotations

import pytest

from clipfleet.contract.brief import JobBrief, labels_words
from clipfleet.contract.label_sets import LabelSet, Preset
from tests.support.jobs import make_job
from tests.support.vector_outputs import vectors_of


def named(name: str, *labels: str) -> LabelSet:
    return LabelSet(name=name, labels=labels)


MANY = tuple(f"label {number}" for number in range(1_030))


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ([], ""),
        ([named("labels", "cat")], "cat"),
        ([named("labels", "cat", "dog", "bird")], "cat, dog, bird"),
        ([named("labels", "cat", "dog", "bird", "fish")], "cat, dog and 2 more"),
        ([named("labels", *MANY)], "label 0, label 1 and 1,028 more"),
        ([LabelSet(preset=Preset.IMAGENET1K)], "imagenet1k"),
        ([named("kind", "cat", "dog"), named("place", "in", "out")], "kind: cat, dog; place: in, out"),
        ([named(f"s{number}", "x") for number in range(5)], "s0: x; s1: x; s2: x and 2 more"),
    ],
)
def test_labels_are_named_by_the_first_ones_and_their_number(sets: list[LabelSet], words: str) -> None:
    assert labels_words(sets) == words


def test_a_brief_stays_short() -> None:
    sets = tuple(named(f"s{number}", *("x" * 500 + str(label) for label in MANY)) for number in range(20))

    brief = JobBrief.of(make_job(labels=("x",)).model_copy(update={"label_sets": sets}))

    assert len(brief.to_json()) < 1_000
    assert JobBrief.of_json(brief.to_json()) == brief


def test_a_job_over_stored_vectors_is_called_relabel() -> None:
    job = make_job("/again", labels=("a", "b"), vectors=vectors_of(make_job("/vectors")))

    assert JobBrief.of(job).task == "relabel"
    assert JobBrief.of_spec(job.model_dump_json()) == JobBrief.of(job)
