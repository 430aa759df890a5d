"""Labels for FiftyOne, in the layout of its `FiftyOneImageClassificationDataset`.

    labels.json        classes, and by the path of each image its labels with their scores
    labels-NAME.json   of each further label set of the job

The images stay where they are: FiftyOne finds them by their absolute paths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from clipfleet.contract.label_sets import LabelKind
from clipfleet.contract.parts import ItemStatus
from clipfleet.errors import UsageError
from clipfleet.exports.chosen import ChosenLabels, chosen_labels
from clipfleet.exports.new_folder import ExportCounts
from clipfleet.parts.json_rows import json_dicts
from clipfleet.results.label_sets import label_sets_of
from clipfleet.results.rows import RowReader

LABELS = "labels.json"
_WAYS_OUT = "export `csv` or `huggingface`, which name images by their URIs"
_FACTS = ("item_index", "item_id", "uri", "status")


def export_fiftyone(reader: RowReader, folder: Path) -> ExportCounts:
    """Write the labels of rows whose images are files; of rows with the same file the first.

    Raises:
        UsageError: the rows have no labels, or no image is a file.
    """
    sets = label_sets_of(reader)
    job = reader.job()
    if job is None:  # removed since
        raise AssertionError("label sets without a job")
    chosen = chosen_labels(job, sets)
    wanted = {*_FACTS, *(name for one in chosen for name in one.needed)}
    stored = reader.read([name for name in reader.read().schema.names if name in wanted])
    total = 0
    seen: set[str] = set()
    with ExitStack() as opened:
        files = [opened.enter_context(_LabelsFile(folder, one, is_first=one is chosen[0])) for one in chosen]
        for row in (row for batch in stored.batches for row in json_dicts(batch)):
            total += 1
            if row["status"] == ItemStatus.OK and row["uri"].startswith("/") and row["uri"] not in seen:
                seen.add(row["uri"])
                for file in files:
                    file.add(row)
    if not seen:
        raise UsageError(
            f"{reader.uri}: no row has an image in a file, which FiftyOne looks for: {_WAYS_OUT}"
        )
    return ExportCounts(len(seen), left_out=total - len(seen), lack="a file with an image of their own")


class _LabelsFile:
    """A file of one label set, written row by row."""

    def __init__(self, folder: Path, chosen: ChosenLabels, *, is_first: bool) -> None:
        name = LABELS if is_first else f"labels-{chosen.label_set.name}.json"
        self._file = (folder / name).open("w", encoding="utf-8")
        self._chosen = chosen
        self._numbers = {label: number for number, label in enumerate(chosen.label_set.labels)}
        self._separator = "\n"

    def __enter__(self) -> Self:
        classes = json.dumps([*self._numbers], ensure_ascii=False)
        self._file.write(f'{{"classes": {classes},\n"labels": {{')
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.write("\n}}\n")

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row, unless it is of another set."""
        if self._chosen.is_of(row):
            target = json.dumps(self._target(row), ensure_ascii=False)
            self._file.write(f"{self._separator}{json.dumps(row['uri'], ensure_ascii=False)}: {target}")
            self._separator = ",\n"

    def _target(self, row: Mapping[str, Any]) -> Any:
        """The labels of a multi set; else the label, or null."""
        about = {"item_index": row["item_index"], "item_id": row["item_id"]}
        found = [
            {"label": self._numbers[label], "confidence": score, "attributes": about}
            for label, score in self._chosen.of(row).items()
        ]
        if self._chosen.label_set.kind is LabelKind.MULTI:
            return found
        return next(iter(found), None)
