"""Jobs and rows as a user finds them again: by `last`, by an output, and in the list of a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.cells import cell_len

from tests.support.cluster import Cluster
from tests.support.images import write_images

STYLES = re.compile(r"\x1b\[[\d;]*m")


def at_a_terminal(cluster: Cluster, *words: str, columns: int, terminal: str) -> list[str]:
    """What `clipfleet WORDS` prints on a terminal of this width and kind, without its control sequences."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    program = subprocess.Popen(
        [Path(sys.executable).with_name("clipfleet"), *words],
        env=cluster.environment() | {"TERM": terminal},
        cwd=cluster.folder, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.STDOUT,
    )  # fmt: skip
    os.close(theirs)
    printed = b""
    try:
        while more := os.read(ours, 1 << 16):
            printed += more
    except OSError:  # EIO: the program has closed the terminal
        pass
    finally:
        os.close(ours)
    assert program.wait(60) == 0, printed
    return [line.rstrip() for line in STYLES.sub("", printed.decode()).splitlines()]


def test_jobs_and_rows_are_found_again(cluster: Cluster, folder: Path) -> None:
    images, output, job_id = folder / "images", folder / "results of today", f"{folder.name}-2"
    write_images(images, 4)
    (images / "broken.jpg").write_bytes(b"no image")
    labels = ("--labels", "cat,dog,bird,fish", "--model", "demo")
    cluster.run("classify", images, *labels, "--job-id", f"{folder.name}-1")
    cluster.run("classify", images, *labels, "--job-id", job_id, "--output", output)

    for name in ("last", output):
        status = cluster.run_json("status", name)
        assert [status[key] for key in ("job_id", "task", "source", "output", "labels")] == [
            job_id, "classify", str(images), str(output), "cat, dog and 2 more",
        ]  # fmt: skip
        assert (status["ok"], status["failed"], status["seconds"] > 0) == (4, 1, True)
    assert cluster.run_json("watch", output, expect=3)["job_id"] == job_id

    (failed,) = [row for row in cluster.rows("last") if row["status"] == "failed"]
    path = f"{folder.name}/images/broken.jpg"  # the command line runs in the folder above
    items = (failed["item_id"], str(failed["item_index"]), failed["uri"], path)
    for item, job in zip(items, ("last", output, f"{folder.name}-1", "last"), strict=True):
        assert cluster.run_json("show", item, "--job", job)["item_index"] == failed["item_index"]
    printed = cluster.run("show", "0").stdout.splitlines()
    shown = dict(line.split(maxsplit=1) for line in printed if " " in line)
    assert (shown["item_index"], len(shown["labels"].split(", "))) == ("0", 4)

    assert cluster.run_json("retry", "last", expect=3)["failed"] == 1
    assert cluster.run_json("rebuild", "last", expect=3)["already_ended"] is True
    assert "5 rows" in cluster.run("export", "last", "--layout", "csv", "--to", folder / "csv").stderr

    (worker,) = cluster.run_json("workers")["workers"]
    assert (worker["models"], worker["pid"]) == (["demo"], cluster.workers[0].pid)
    assert worker["up_seconds"] > 0

    for terminal in ("xterm", "dumb"):
        lines = at_a_terminal(cluster, "jobs", "--limit", "2", columns=100, terminal=terminal)
        assert max(map(cell_len, lines)) <= 100
        assert [line.split()[0] for line in lines[3:]] == [job_id, "classify", f"{folder.name}-1", "classify"]
        assert "with errors" in lines[4]
    assert str(output) in cluster.run("jobs", "--limit", "2").stdout.splitlines()[2]
