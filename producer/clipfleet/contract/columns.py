"""Names of the columns of a label set, and types of vectors, without pyarrow: `--help` needs them."""

from __future__ import annotations

from enum import StrEnum

LABEL_COLUMNS = ("label", "score", "labels", "scores")
ACCEPTED_COLUMN = "accepted"  # only where a label set has thresholds
# Of a job with a policy.
DECISION_COLUMNS = ("decision", "decision_id", "decided_at", "decision_reasons")


class VectorType(StrEnum):
    """Type of the numbers of a vector in a part."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"  # for programs that read no float16, such as Spark


def label_columns(set_name: str) -> tuple[str, ...]:
    """Names of the columns of one label set, in the order of `LABEL_COLUMNS`."""
    return tuple(f"{column}_{set_name}" for column in LABEL_COLUMNS)


def accepted_column(set_name: str) -> str:
    """Name of the column of one label set with the labels that it accepts."""
    return f"{ACCEPTED_COLUMN}_{set_name}"


def head_scores_column(head_name: str) -> str:
    """Name of the column with all scores of a head, in the order of its labels; of a job with a policy."""
    return f"head_{head_name}_scores"
