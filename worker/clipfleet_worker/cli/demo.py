"""`clipfleet-worker demo`: three jobs label sixty sample images, on an embedded server and a real worker.

Each job labels twenty images among their own twenty names.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.contract.jobs import DEMO_MODEL, JobState, new_job_id
from clipfleet.errors import UsageError
from clipfleet.terminal.console import print_table, say
from clipfleet_worker.machine.up import RUN_WORKER, Up

_MARKER = "clipfleet demo"


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample image of the package."""

    file: str
    name: str
    group: int  # its images are labelled among its names


def run_demo(directory: Path) -> int:
    """Run the demo in a folder of its own; returns the exit code.

    Raises:
        UsageError: the folder holds something else, or see `Up.run`.
    """
    directory = directory.absolute()
    try:
        _make_folder(directory)
    except OSError as error:
        raise UsageError(f"cannot use {directory}: {error.strerror}; give another --dir") from error
    command = [sys.executable, "-P", "-m", "clipfleet_worker.cli.demo_child", str(directory)]
    os.environ.setdefault("CLIPFLEET_DEVICE", "cpu")  # fast enough for the small model
    worker = [*RUN_WORKER, "--models", DEMO_MODEL]
    return Up(directory / "service", worker_argv=worker, command=command).run()


def samples() -> list[Sample]:
    """All samples, in the order of `samples.json`."""
    text = (files("clipfleet_worker") / "samples" / "samples.json").read_text()
    return [Sample(**entry) for entry in json.loads(text)]


def label_samples(directory: Path) -> int:
    """Run the producer's side of the demo beside a worker; returns the exit code."""
    run = directory / "results" / new_job_id()
    groups = sorted({sample.group for sample in samples()})
    with Client() as client:
        jobs = [_submit(client, directory, run, group) for group in groups]
        say("submitted a job for each folder: " + ", ".join(job.job_id for job in jobs))
        states = [job.wait().state for job in jobs]
        rows = [row for job in jobs for row in job.results()]
    if any(state is not JobState.COMPLETED for state in states):
        say(f"the jobs ended as {', '.join(states)}; see the logs in {directory / 'service'}", style="red")
        return 1
    right = _print_table(rows)
    _print_next_steps(directory, run, right, len(rows))
    return 0


def _make_folder(directory: Path) -> None:
    marker = directory / "README.txt"
    if directory.exists() and any(directory.iterdir()) and not _is_ours(marker):
        raise UsageError(f"{directory} is not empty; choose another folder with --dir")
    directory.mkdir(parents=True, exist_ok=True)
    marker.write_text(f"{_MARKER}: created by `clipfleet-worker demo`, may be deleted\n")
    with as_file(files("clipfleet_worker") / "samples") as source:
        for sample in samples():
            target = directory / "images" / str(sample.group) / sample.file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / sample.file, target)


def _is_ours(marker: Path) -> bool:
    return marker.is_file() and marker.read_text().startswith(_MARKER)


def _submit(client: Client, directory: Path, run: Path, group: int) -> JobHandle:
    names = [sample.name for sample in samples() if sample.group == group]
    options = JobOptions(output=run / str(group), model=DEMO_MODEL)
    return client.classify(directory / "images" / str(group), names, options=options)


def _print_table(rows: list[dict[str, Any]]) -> int:
    """Print every image with its label; returns how many are right."""
    names = {sample.file: sample.name for sample in samples()}
    table = Table("image", "label", "score", "", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    right = 0
    for row in rows:
        is_right = row["label"] == names[row["item_id"]]
        right += is_right
        mark = "[green]right[/green]" if is_right else "[yellow]wrong[/yellow]"
        table.add_row(row["item_id"], row["label"], f"{row['score']:.2f}", mark)
    print_table(table)
    return right


def _print_next_steps(directory: Path, run: Path, right: int, total: int) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n{right} of {total} right ({right / total:.0%}), one row per image.")
    console.print("The demo model is small: it knows emoji-like images only.\n")
    console.print(f"images    {directory / 'images'}", markup=False)
    console.print(f"results   {run}", markup=False)
    console.print("\nNext, label your own images with the real model (605 MB of weights, downloaded once):\n")
    activate = Path(sys.executable).with_name("activate")
    if shutil.which("clipfleet") is None and activate.exists():
        console.print(f"  source {shlex.quote(str(activate))}", markup=False)
    console.print(
        '  clipfleet-worker up -- clipfleet classify FOLDER --labels "cat,dog" --output results/mine\n',
        markup=False,
    )
