"""Jobs with images that harm their decoder, and workers that are restarted when they die of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipfleet.outputs.folder import FolderOutput
from clipfleet.results import rows as results
from clipfleet.results.part_rows import PartRows
from tests.support.cluster import Cluster, WorkerProcess
from tests.support.hostile_decoder import Deed
from tests.support.images import encoded, make_image
from tests.support.waiting import wait_until

CODES = {
    Deed.EXIT: "crashed",
    Deed.NO_MEMORY: "out_of_memory",
    Deed.HOARD: "out_of_memory",
    Deed.SEGFAULT: "crashed",
    Deed.LOOP: "decode_timeout",
}

SETTINGS = {
    "CLIPFLEET_DECODE_SECONDS": "5",
    "CLIPFLEET_LEASE_SECONDS": "3",
    "CLIPFLEET_RECONCILE_SECONDS": "0.5",
}
_PROGRAM = ("tests.support.altered_worker", "harm")
_JOB_SECONDS = 280.0


@dataclass(frozen=True)
class Ending:
    """How a job ended."""

    status: dict[str, Any]
    codes: dict[int, str | None]  # by item_index
    exit_codes: list[int]  # of the workers that died, in order
    decode_children: list[str]  # command lines of those that are left


def write_hostile_images(
    folder: Path, count: int, deeds: Mapping[int, Deed], *, image_format: str = "JPEG"
) -> None:
    """`count` images named by number, some of which do something."""
    folder.mkdir()
    harmless = [encoded(make_image(number), image_format) for number in range(50)]
    for number in range(count):
        data = harmless[number % len(harmless)]
        deed = deeds.get(number)
        (folder / f"{number:06d}.{image_format.lower()}").write_bytes(deed.mark(data) if deed else data)


def run_with_restarts(cluster: Cluster, images: Path, *, chunk_size: int) -> Ending:
    """Label the images; a worker that died is restarted at once, as by `up` and systemd."""
    output = cluster.folder / "out"
    submitted = cluster.run_json(
        "embed", images, "--model", "demo", "--output", output, "--chunk-size", str(chunk_size), "--no-wait"
    )
    workers = [cluster.start_worker(program=_PROGRAM)]

    def is_over() -> bool:
        if workers[-1].process.poll() is not None:
            workers.append(cluster.start_worker(program=_PROGRAM))
        return (output / "_SUCCESS").exists()

    wait_until(is_over, f"the job is over\n{cluster.logs()}", _JOB_SECONDS)
    status = cluster.run_json("status", submitted["job_id"])
    *dead, last = workers
    assert last.terminate() == 0, last.log()
    rows = list(results.rows(PartRows(FolderOutput(output))))
    assert [row["item_index"] for row in rows] == list(range(len(rows)))
    return Ending(
        status,
        {row["item_index"]: row["error_code"] for row in rows},
        [int(worker.process.returncode) for worker in dead],
        _decode_children_of(workers),
    )


def _decode_children_of(workers: list[WorkerProcess]) -> list[str]:
    """A child's first argument is the process id of its worker."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                words = (process / "cmdline").read_text().split("\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if any(f"{worker.pid}" in words for worker in workers) and any(
                "decode_child" in w for w in words
            ):
                found.append(" ".join(words))
    return found
