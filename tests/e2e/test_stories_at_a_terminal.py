"""What new users met, done again at a terminal: each line says what is true, and what to do.

Those about `clipfleet-worker up` are in `test_up_at_a_terminal.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.images import write_images
from tests.support.pseudo_terminal import PseudoTerminal

CLASSIFY = "clipfleet classify images --labels pie,kite --model demo"
_RATE = re.compile(r"/s\)")  # of a job that was run now


@dataclass(frozen=True)
class User:
    """Somebody in a folder with images, who opens a terminal for every line."""

    folder: Path
    environment: dict[str, str]

    def types(self, line: str, code: int = 0) -> str:
        """Type a line and wait for its end; returns all that was shown."""
        with PseudoTerminal(line, self.folder, self.environment) as terminal:
            return terminal.ends(code)


@pytest.fixture
def user(cluster: Cluster, folder: Path) -> User:
    write_images(folder / "images", 5)
    environment = cluster.environment()
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return User(folder, environment | {"PATH": path})


def test_a_job_that_had_ended_is_not_reported_as_if_it_had_run_now(user: User) -> None:
    again = f"{CLASSIFY} -o out --job-id {user.folder.name}"
    assert "Done: 5 labelled, 0 failed in " in user.types(again)

    for line in (
        again,
        "clipfleet retry out",
        "clipfleet rebuild out",
        f"clipfleet watch {user.folder.name}",
    ):
        seen = user.types(line)
        assert "Already completed on 20" in seen, line
        assert not _RATE.search(seen), line


def test_a_job_over_a_folder_that_has_changed_is_an_error(user: User) -> None:
    line = f"{CLASSIFY} -o out --job-id {user.folder.name}"
    user.types(line)
    write_images(user.folder / "images", 7)

    seen = user.types(line, code=2)

    assert "holds 5 items; the source now has 7: choose another --job-id" in seen


def test_an_output_that_has_lost_a_part_is_an_error(user: User) -> None:
    user.types(f"{CLASSIFY} -o out --chunk-size 2")
    (user.folder / "out" / "data" / "part-00000001.parquet").unlink()

    seen = user.types("clipfleet results out", code=1)

    assert "part-00000001.parquet" in seen


def test_a_job_whose_rows_all_failed_has_labels_not_vectors(user: User) -> None:
    for image in (user.folder / "images").iterdir():
        image.write_bytes(b"none")
    assert "Done: 0 labelled, 5 failed" in user.types(f"{CLASSIFY} -o out", code=3)

    heading = user.types("clipfleet results out")

    assert "label" in heading
    assert "vector" not in heading


def test_the_command_that_is_named_can_be_pasted(user: User) -> None:
    seen = user.types(f"{CLASSIFY} -o 'out ü x'")
    (named,) = re.findall(r"View them: `([^`]+)`", seen)

    assert "pie" in user.types(named)


def test_a_dash_is_no_folder(user: User) -> None:
    user.types(f"{CLASSIFY} -o out")

    seen = user.types("clipfleet export out --layout csv --to -", code=2)

    assert "clipfleet results JOB --format csv" in seen
    assert not (user.folder / "-").exists()


def test_one_label_is_refused_with_a_way_out_that_works(user: User) -> None:
    seen = user.types("clipfleet classify images --labels cat --model demo", code=2)

    assert "error: 'cat' is the only label" in seen and "ask with --none whether an image shows it" in seen
    assert "Done: 5 labelled" in user.types("clipfleet classify images --labels cat --none --model demo")


def test_a_glob_that_the_shell_expands_is_one_line(user: User) -> None:
    (suffix,) = {image.suffix for image in (user.folder / "images").iterdir()}

    seen = user.types(f"clipfleet classify images/*{suffix} --labels a,b", code=2)

    assert (
        seen.strip()
        == f"error: 5 files were given, SOURCE is one: put the glob in quotes, 'images/*{suffix}'"
    )


def test_a_mistake_in_a_job_file_says_what_is_expected(user: User) -> None:
    (user.folder / "y2.yaml").write_text("source: images\nmodel: demo\noutput: out\nlabel_sets: [cat, dog]\n")

    seen = user.types("clipfleet run y2.yaml", code=2)

    assert seen.startswith("error: y2.yaml:4: label_sets: ")
    assert "{animals: [cat, dog]}" in seen


def test_a_job_is_named_by_its_output(user: User) -> None:
    user.types(f"{CLASSIFY} -o results/a --job-id {user.folder.name}")

    for command in ("status", "watch"):
        assert user.folder.name in user.types(f"clipfleet {command} results/a"), command
    for command in ("pause", "resume", "cancel"):
        assert f"job {user.folder.name} is completed already" in user.types(f"clipfleet {command} results/a")
    shutil.rmtree(user.folder / "results")
    assert "no job has this output" in user.types("clipfleet status results/a", code=2)


def test_all_jobs_are_watched_until_ctrl_c(user: User) -> None:
    for name in ("one", "two"):
        user.types(f"{CLASSIFY} -o out-{name} --job-id {user.folder.name}-{name} --model a:b --no-wait")
    with PseudoTerminal("clipfleet watch --all", user.folder, user.environment) as terminal:
        for name in ("two", "one"):
            terminal.wait_for(f"{user.folder.name}-{name} +a:b")
        terminal.wait_for("no connected worker serves a:b")
        terminal.press_ctrl_c()
        seen = terminal.ends(130)

    assert "Watch them again with `clipfleet watch --all`" in seen
    assert "Traceback" not in seen
    for name in ("one", "two"):
        user.types(f"clipfleet cancel {user.folder.name}-{name}")
    assert "no job is running; submit one with " in user.types("clipfleet watch --all")


def test_python_says_which_option_is_wrong_and_shows_a_job_by_name(user: User) -> None:
    lines = (
        "from clipfleet.client import Client, JobOptions",
        "try: JobOptions(lane='hi')",
        "except Exception as error: print(error)",
        "print(Client().classify('images', ['pie', 'kite'], options=JobOptions(model='demo')))",
    )
    (user.folder / "script.py").write_text("\n".join(lines))

    wrong, shown = user.types("python script.py").strip().splitlines()

    assert wrong == "lane: 'hi' is not one of 'high', 'normal' or 'bulk'"
    assert re.fullmatch(r"<JobHandle \S+: classify \S+/images -> redis://>", shown)
