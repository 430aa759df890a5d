"""Files of marks and label sets that commands write: whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import OutputUnavailableError, UsageError
from clipfleet.labels.marks import MARK_COLUMNS, is_marked
from clipfleet.labels.sets import label_set_yaml, read_label_set

TO_MARK_COLUMNS = (*MARK_COLUMNS, "uri", "score", "threshold")


def to_mark_text(rows: Iterable[Mapping[str, object]], *, as_json: bool = False) -> str:
    """Rows to mark, as CSV or as JSON Lines."""
    text = io.StringIO()
    if as_json:
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return text.getvalue()
    writer = csv.DictWriter(text, TO_MARK_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def require_unmarked(path: Path) -> None:
    """Refuse to replace a file in which somebody has marked.

    Raises:
        UsageError: it has a verdict, or is no file of marks.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UsageError(f"{path}: marks are written as .csv or .jsonl: name such a file")
    if path.exists() and is_marked(path):
        raise UsageError(f"{path} holds verdicts: rename it, or name another file")


def require_yaml(path: Path) -> None:
    """Refuse a name that is not one of a YAML file.

    Raises:
        UsageError: it is not.
    """
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise UsageError(f"{path}: a label set is written as .yaml: name such a file")


def require_replaceable(path: Path, label_set: LabelSet, overwrite: bool) -> None:
    """Refuse to replace a file that holds more than a label set with the same prompts.

    Raises:
        UsageError: it holds something else, or certificates.
    """
    require_yaml(path)
    if overwrite or not path.exists():
        return
    there = read_label_set(str(path))
    if there.certificates:
        labels = ", ".join(dict.fromkeys(one.label for one in there.certificates))
        raise UsageError(
            f"{path} holds certificates ({labels}), which a new calibration drops: name another file, or add "
            "`overwrite=True`"
        )
    if there.prompts_hash != label_set.prompts_hash:
        raise UsageError(f"{path} holds another label set: name another file, or add `overwrite=True`")


def write_label_set(path: Path, label_set: LabelSet) -> None:
    """Replace a file atomically by a label set."""
    write_text(path, label_set_yaml(label_set))


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically.

    Raises:
        OutputUnavailableError: it cannot be written; it is as before.
    """
    scratch = path.with_name(f".{path.name[:200]}.{uuid.uuid4().hex[:12]}")
    try:
        with scratch.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise OutputUnavailableError(f"{path}: {error.strerror or error}") from error
    finally:
        scratch.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        OutputUnavailableError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputUnavailableError(f"{path}: {error.strerror or error}") from error
