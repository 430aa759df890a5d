"""What is printed of an evaluation."""

from __future__ import annotations

import numpy as np

from clipfleet.evaluation.measuring import measure_classification
from clipfleet.evaluation.outcome import Compared, Evaluation
from clipfleet.evaluation.vectors import FailedItem
from clipfleet.evaluation.words import evaluation_lines


def test_metrics_classes_confusions_comparison_and_failures() -> None:
    """Two classes have one name: they are confused all the same."""
    names = ["crane", "crane", "dog"]
    truth = np.array([0, 0, 0, 1, 2, 2])
    images = np.eye(3, dtype=np.float32)[[0, 1, 1, 1, 2, 0]]

    measured = measure_classification(images, np.eye(3, dtype=np.float32), truth, names)
    found = Evaluation(
        source="/sets/birds", split="test", task="zeroshot_classification", dataset="wds/birds", model="demo",
        precision="fp32", decode="exact", model_fingerprint="f", outputs={}, items_ok=np.ones(6, bool),
        measure=lambda mask: measured, measured=measured, truth_hash="t",
        compared_with="other", compared_items=5,
        compared_failed=(FailedItem(3, "s3", "decode", "broken"),),
        failed=tuple(FailedItem(number, f"s{number}", "empty", "no bytes") for number in range(6, 13)),
        comparison=(Compared("acc1", 2 / 3, 0.5, 1 / 6, (-0.1, 0.4), 0.25),),
    )  # fmt: skip

    lines = [*evaluation_lines(found)]
    assert lines.pop(3).startswith("  mean_per_class_recall  0.6111  [")
    assert lines == [
        "/sets/birds, split test: 6 items, model demo",
        "  acc1                   0.5000  [0.1876, 0.8124]",
        "  acc5                   -     ",
        "  acc5 is null: there are fewer than 5 classes",
        "lowest recall",
        "  crane  0.3333  [0.0615, 0.7923] of 3",
        "  dog    0.5000  [0.0945, 0.9055] of 2",
        "  crane  1.0000  [0.2065, 1.0000] of 1",
        "most frequent confusions",
        "  2  crane taken for crane",
        "  1  dog taken for crane",
        "compared with other on 5 items that both count, 95 % intervals of the differences",
        "  acc1  0.6667 against 0.5000: +0.1667  [-0.1000, 0.4000], McNemar p = 0.25",
        "left out of other: 1 failed item",
        "  s3: decode: broken",
        "left out: 7 failed items",
        *(f"  s{number}: empty: no bytes" for number in range(6, 11)),
        "  and 2 more",
    ]
