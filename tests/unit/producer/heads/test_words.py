"""What `clipfleet head show` says of a head, also of one that a stranger wrote."""

from __future__ import annotations

from typing import Any

import pytest

from clipfleet.contract.heads import HeadTraining
from clipfleet.heads.words import head_lines
from tests.support.heads import head_file


def lines_of(cv: dict[str, Any]) -> list[str]:
    return list(head_lines(head_file(4, 2, training=HeadTraining(recipe="test", cv=cv))))


def test_figures_have_their_intervals_and_the_caveat() -> None:
    *_, title, first, second = lines_of(
        {
            "items": 1200,
            "folds": 5,
            "metrics": {"acc1": 0.75, "acc5": None},
            "intervals": {"acc1": [0.7, 0.8]},
        }
    )

    assert title == ("cross-validated on 1,200 items, 5 folds (they also chose how strongly it is held back)")
    assert (first, second) == ("  acc1  0.7500  [0.7000, 0.8000]", "  acc5  -")


@pytest.mark.parametrize(
    ("cv", "shown"),
    [
        ({"metrics": {"a": 1}, "items": "abc", "folds": [5]}, "  a  1.0000"),
        ({"metrics": {"a": "x"}, "items": 1}, "  a  -"),
        ({"metrics": {"a": 10**400}, "items": 10**400}, "  a  -"),
        ({"metrics": {"a": float("nan")}, "items": float("inf")}, "  a  -"),
        ({"metrics": {"a": 1}, "intervals": [1]}, "  a  1.0000"),
        ({"metrics": {"a": 1}, "intervals": {"a": [1]}}, "  a  1.0000"),
        ({"metrics": {"a": 1}, "intervals": {"a": [0.5, "x"]}}, "  a  1.0000"),
    ],
)
def test_what_is_no_number_is_not_shown(cv: dict[str, Any], shown: str) -> None:
    assert lines_of(cv)[-1] == shown
