"""Checks a project with the SDK of Label Studio, and answers its tasks; runs in an environment of its own.

    python label_studio_project.py PROJECT ANSWERS EXPORT

PROJECT is the folder of the export, ANSWERS a JSON object: the labels to choose, by `item_id`. Writes the
tasks with annotations as Label Studio exports them, and prints the number of predictions. Imports nothing of
clipfleet.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from label_studio_sdk.label_interface import LabelInterface
from label_studio_sdk.label_interface.objects import AnnotationValue


def main(project: Path, answers: Path, export: Path) -> None:
    interface = LabelInterface((project / "config.xml").read_text())
    interface.validate()
    (control,) = interface.controls
    tasks = json.loads((project / "tasks.json").read_text())
    chosen = json.loads(answers.read_text())
    predictions = 0
    for task in tasks:
        assert interface.validate_task({"data": task["data"]}), task
        for prediction in task["predictions"]:
            assert interface.validate_prediction(prediction, return_errors=True) == [], prediction
            predictions += bool(prediction["result"])
        task["annotations"] = []
        if task["data"]["item_id"] in chosen:
            labels = chosen[task["data"]["item_id"]]
            regions = interface.create_regions({control.name: labels}) if labels else []
            annotation = AnnotationValue(completed_by=1, result=regions).model_dump()
            assert interface.validate_annotation(annotation), annotation
            task["annotations"] = [annotation]
    export.write_text(json.dumps(tasks))
    print(json.dumps({"predictions": predictions}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
