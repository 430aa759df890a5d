"""A project of Label Studio: tasks with the labels of the rows as predictions, and their configuration.

    config.xml   the labelling configuration: one `Choices` per label set, which is named like the set
    tasks.json   a task for each ok row, in the order of the rows

What people mark comes back with `clipfleet marks import`: a task has what names its item.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pyarrow.compute as pc

from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.contract.parts import ItemStatus
from clipfleet.exports.chosen import ChosenLabels, chosen_labels
from clipfleet.exports.new_folder import ExportCounts
from clipfleet.labels.label_studio import LABEL_SETS_KEY
from clipfleet.parts.json_rows import json_dicts
from clipfleet.results.label_sets import label_sets_of
from clipfleet.results.rows import RowReader

TASKS, CONFIG = "tasks.json", "config.xml"
_IMAGE = "image"
_FACTS = ("item_index", "item_id", "uri", "status", "content_hash", "model_fingerprint")
_LOCAL = "/data/local-files/?d="  # what Label Studio serves of its own machine


def export_label_studio(reader: RowReader, folder: Path) -> ExportCounts:
    """Write configuration and tasks into a folder.

    Raises:
        UsageError: the rows have no labels.
    """
    sets = label_sets_of(reader)
    job = reader.job()
    if job is None:  # removed since
        raise AssertionError("label sets without a job")
    controls = chosen_labels(job, sets)
    (folder / CONFIG).write_text(_config(sets), encoding="utf-8")
    wanted = {*_FACTS, *(name for one in controls for name in one.needed)}
    stored = reader.read([name for name in reader.read().schema.names if name in wanted])
    rows = total = local = 0
    with (folder / TASKS).open("w", encoding="utf-8") as file:
        file.write("[")
        for batch in stored.batches:
            total += batch.num_rows
            for row in json_dicts(batch.filter(pc.equal(batch["status"], ItemStatus.OK.value))):
                task = _task(row, [one for one in controls if one.is_of(row)])
                local += task["data"][_IMAGE].startswith(_LOCAL)
                file.write((",\n" if rows else "\n") + json.dumps(task, ensure_ascii=False))
                rows += 1
        file.write("\n]\n")
    return ExportCounts(rows, left_out=total - rows, lack="an image that could be read", notes=_notes(local))


def _result(labels: ChosenLabels, row: Mapping[str, Any]) -> dict[str, Any]:
    name, chosen = labels.label_set.name, labels.of(row)
    score = max((score or 0.0 for score in chosen.values()), default=0.0)
    return {
        "id": name, "from_name": name, "to_name": _IMAGE, "type": "choices",
        "value": {"choices": [*chosen]}, "score": score,
    }  # fmt: skip


def _task(row: Mapping[str, Any], controls: Sequence[ChosenLabels]) -> dict[str, Any]:
    results = [_result(one, row) for one in controls]
    data = {
        _IMAGE: _shown_uri(row["uri"]), "uri": row["uri"], "item_index": row["item_index"],
        "item_id": row["item_id"], "content_hash": row["content_hash"],
        LABEL_SETS_KEY: [one.label_set.name for one in controls],
    }  # fmt: skip
    prediction = {
        "model_version": row["model_fingerprint"],
        "score": min((one["score"] for one in results), default=0.0),
        "result": [one for one in results if one["value"]["choices"]],
    }
    return {"data": data, "predictions": [prediction]}


def _shown_uri(uri: str) -> str:
    """Where Label Studio finds an image: a file by its path below the root."""
    return _LOCAL + quote(uri.lstrip("/")) if uri.startswith("/") else uri


def _config(sets: Sequence[LabelSet]) -> str:
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=_IMAGE, value=f"${_IMAGE}")
    for one in sets:
        if len(sets) > 1:
            ElementTree.SubElement(view, "Header", value=one.name)
        choice = "multiple" if one.kind is LabelKind.MULTI else "single"
        # Without thresholds one label is true of each image: nothing chosen would be no answer.
        required = {} if one.has_thresholds else {"required": "true"}
        about = {"name": one.name, "toName": _IMAGE, "choice": choice, **required}
        choices = ElementTree.SubElement(view, "Choices", about)
        for label in one.labels:
            ElementTree.SubElement(choices, "Choice", value=label)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def _notes(local: int) -> tuple[str, ...]:
    if not local:
        return ()
    return (
        "Label Studio shows the files of its own machine only if it is started with "
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/, and the "
        "project has their folder as a local storage",
    )
