"""What the rows of a sample say about all items."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfleet.commands.estimates import estimate_words
from clipfleet.contract.bottleneck import Meters, Step
from clipfleet.contract.jobs import Job, JobState
from clipfleet.contract.label_sets import LabelSet
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.estimate import Estimate, Share, estimate_of
from clipfleet.results.part_rows import PartRows
from tests.support.jobs import make_job, make_status
from tests.support.rows import accepting, add_part, failed, row


# From tables of Wilson's interval, 95 %.
@pytest.mark.parametrize(
    ("count", "rows", "low", "high"),
    [(10, 100, 0.0552, 0.1744), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 2, 0.0945, 0.9055)],
)
def test_an_interval(count: int, rows: int, low: float, high: float) -> None:
    share = Share.of(count, rows)

    assert (share.share, share.low, share.high) == pytest.approx((count / rows, low, high), abs=5e-5)


def estimate(folder: Path, job: Job, labels: list[str | None], **values: str) -> Estimate:
    output = FolderOutput(folder)
    rows = [
        failed(n) if label is None else row(n, label=label, **{k: v.format(label) for k, v in values.items()})
        for n, label in enumerate(labels)
    ]
    half = len(rows) // 2
    names = [label_set.name for label_set in job.named_label_sets]
    add_part(output, 0, rows[:half], label_sets=names)
    add_part(output, 1, rows[half:], label_sets=names)
    status = make_status(
        state=JobState.COMPLETED, ran=len(rows), finished_ms=1_764_000_000_000 + 30_000,
        meters=Meters({Step.LOAD: 10.0, Step.ITEMS: 20.0}),
    )  # fmt: skip
    return estimate_of(PartRows(output), job, status, 100 * len(rows))


def test_shares_are_of_all_items_most_frequent_first(tmp_path: Path) -> None:
    job = make_job(tmp_path, labels=("cat", "dog", "car"))

    found = estimate(tmp_path, job, ["dog", "cat", None, "cat", "cat", None, "dog", "cat"])

    assert (found.items, found.sampled) == (800, 8)
    assert found.failed == Share.of(2, 8)
    assert [(name, [*shares.items()]) for name, shares in found.labels.items()] == [
        (job.label_sets[0].name, [("cat", Share.of(4, 8)), ("dog", Share.of(2, 8))])
    ]
    assert found.seconds == pytest.approx(10 + 100 * 20)  # the model is loaded once
    assert estimate_words(found) == (
        "estimate for all 800 items: failed 25 % (7.1-59 %); cat 50 % (22-78 %), dog 25 % (7.1-59 %); "
        "about 33 min 30 s at this rate"
    )


def test_several_label_sets_have_shares_of_their_own(tmp_path: Path) -> None:
    sets = (LabelSet(name="pets", labels=("cat", "dog")), LabelSet(name="kinds", labels=("k-cat", "k-dog")))
    job = make_job(tmp_path, labels=("x",), label_sets=sets)

    found = estimate(tmp_path, job, ["cat", "cat", "dog", "cat"], label_pets="{}", label_kinds="k-{}")

    assert {name: [*shares] for name, shares in found.labels.items()} == {
        "pets": ["cat", "dog"], "kinds": ["k-cat", "k-dog"],
    }  # fmt: skip
    assert "; pets: cat 75 % (" in estimate_words(found) and "; kinds: k-cat 75 % (" in estimate_words(found)


def test_every_accepted_label_counts_and_rows_without_one_are_a_share(tmp_path: Path) -> None:
    job = make_job(tmp_path, labels=("x",), label_sets=(LabelSet(labels=("cat", "dog"), kind="multi"),))
    output = FolderOutput(tmp_path)
    rows = [accepting(0, "cat", "dog"), accepting(1), failed(2), accepting(3, "dog")]
    add_part(output, 0, rows, accepted=["accepted"])

    found = estimate_of(PartRows(output), job, make_status(), 400)

    assert {**found.labels["labels"]} == {"dog": Share.of(2, 4), "cat": Share.of(1, 4)}
    assert {**found.unlabelled} == {"labels": Share.of(1, 4)}
    assert "; dog 50 % (15-85 %), cat 25 % (4.6-70 %), no label 25 % (4.6-70 %)" in estimate_words(found)


def test_vectors_have_no_labels_and_of_many_labels_the_rest_is_counted(tmp_path: Path) -> None:
    assert estimate(tmp_path / "v", make_job(tmp_path), ["-"] * 4).labels == {}

    job = make_job(tmp_path, labels=("x",))
    words = estimate_words(estimate(tmp_path / "l", job, [f"l{n % 9}" for n in range(40)]))
    assert words.count("(") == 1 + 5 and ", 4 more;" in words
