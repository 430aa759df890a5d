"""What a user may write as labels: a list on the command line, or a file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from clipfleet.contract import LabelSet
from clipfleet.errors import UsageError
from clipfleet.label_sets import label_sets_of, read_label_lines, read_label_set

_FILE_SUFFIXES = (".txt", ".csv", ".lst")


def chosen_label_sets(
    labels: str | None, files: Sequence[str], templates: Sequence[str]
) -> tuple[LabelSet, ...]:
    """The label sets of `--labels` and `--label-set`.

    Raises:
        UsageError: there is none, or one that cannot be used.
    """
    if labels is None and not files:
        raise UsageError(
            "no labels: give --labels A,B,C, a file with one per line, or --label-set imagenet1k or FILE.yaml"
        )
    if labels is None and templates:
        raise UsageError("--template goes with --labels: write the templates into the file of the label set")
    named = () if labels is None else label_sets_of(read_labels(labels), templates)
    return (*named, *(read_label_set(text) for text in files))


def read_labels(text: str) -> list[str]:
    """Labels from a file with one per line, or from a list with commas; blank ones are left out.

    In a list double quotes keep a comma inside a label; in a file every character belongs to the label.

    Raises:
        UsageError: no labels, a list with a quote that is not closed, or a file that cannot be read.
    """
    path = Path(text)
    if _is_file(path) or ("," not in text and path.suffix.lower() in _FILE_SUFFIXES):
        try:
            names = read_label_lines(path)
        except UsageError as error:
            raise UsageError(f"--labels {error}") from None
    else:
        try:
            rows = csv.reader(
                (line.strip() for line in text.splitlines()), skipinitialspace=True, strict=True
            )
            names = [name for row in rows for name in row]
        except csv.Error:
            raise UsageError(
                f'--labels: the double quotes in {text!r} make no names: write "a, b",c or give a file'
            ) from None
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UsageError(f"--labels {text!r} holds no label: give names separated by commas, or a file")
    return names


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no file can have so long a name
        return False
