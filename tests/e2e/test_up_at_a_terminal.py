"""`up` at a terminal: what it says is true, and the commands that it names do what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from clipfleet_worker.cli.demo import samples
from clipfleet_worker.machine.up_folder import UpFolder
from tests.e2e.test_first_minute import processes_of
from tests.support.pseudo_terminal import PseudoTerminal
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_broker

ITEMS = 1500
LABELS = "--labels 'pie,kite' --model demo"


@dataclass(frozen=True)
class User:
    """Somebody with two folders of images, who opens a terminal for every line."""

    home: Path

    @property
    def folder(self) -> Path:
        return self.home / "a b"

    def type(self, line: str, folder: Path | None = None) -> PseudoTerminal:
        clean = {name: value for name, value in os.environ.items() if "CLIPFLEET_" not in name}
        path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
        return PseudoTerminal(line, folder or self.folder, clean | {"PATH": path, "OMP_NUM_THREADS": "1"})

    def run(self, line: str, code: int = 0, folder: Path | None = None) -> str:
        """Type a line and wait for its end; returns all that was shown."""
        with self.type(line, folder) as terminal:
            return terminal.ends(code)


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    made = User(tmp_path)
    for folder in (made.folder, tmp_path / "other"):
        (folder / "images").mkdir(parents=True)
        with as_file(files("clipfleet_worker") / "samples") as images:
            for sample in samples()[:5]:
                shutil.copyfile(images / sample.file, folder / "images" / sample.file)
    names = [sample.file for sample in samples()[:5]]
    lines = "".join(f"images/{names[number % 5]}\n" for number in range(ITEMS))
    (made.folder / "list.txt").write_text(lines)
    yield made
    made.run("clipfleet-worker up --stop", folder=made.folder)
    assert processes_of(tmp_path) == []


def test_ctrl_c_under_up_pauses_the_job_and_names_the_command_that_continues_it(user: User) -> None:
    """Also with a --dir and --models that have to be given again."""
    classify = f"clipfleet classify list.txt {LABELS} --chunk-size 20 --output out --job-id j1"
    up = "clipfleet-worker up --dir 'my up' --models demo"
    with user.type(f"{up} -- {classify}") as terminal:
        terminal.wait_for(r"[1-9][\d,]*/1,?500")
        terminal.press_ctrl_c()
        seen = terminal.ends(130)
    paused = re.search(r"^Paused: ([\d,]+) of 1,500 done so far\. Continue with `(.+)`$", seen, re.MULTILINE)
    assert paused, seen
    assert 0 < int(paused[1].replace(",", "")) < ITEMS
    assert paused[2] == f"clipfleet-worker up --dir '{user.folder}/my up' --models demo -- clipfleet watch j1"
    assert "Finishing the work in progress. Press Ctrl-C again to stop at once" in seen
    wait_until(lambda: processes_of(user.home) == [], "all that was started has ended")
    # Why the command is not `clipfleet watch` alone
    assert "connection refused" in user.run("source 'my up/env'; clipfleet watch j1", 1)

    continued = user.run(paused[2])  # the exit code says that all rows are ok

    assert "Ctrl-C" not in continued  # nobody has pressed anything
    assert user.run("clipfleet results out --format csv | wc -l").strip() == str(ITEMS + 1)


def test_ctrl_c_while_the_submit_runs_under_up(user: User) -> None:
    """The printed command ends the submit, and the job."""
    os.mkfifo(user.folder / "slow")
    command = f"clipfleet-worker up -- clipfleet classify - {LABELS} --base-uri . --output 'o u t'"
    with user.type(f"{command} < slow") as terminal, (user.folder / "slow").open("w") as slow:
        slow.write("".join((user.folder / "list.txt").read_text().splitlines(keepends=True)[:40]))
        slow.flush()
        wait_until(lambda: list(user.folder.glob("o u t/_clipfleet/items-*")), "some items are staged", 120)
        terminal.press_ctrl_c()
        seen = terminal.ends(130)
    resume = re.search(r"Paused during the submit\. Continue with `(.+)`$", seen, re.MULTILINE)
    assert resume, seen
    up, submit = resume[1].split(" --job-id ")
    assert up == "clipfleet-worker up -- clipfleet classify"
    assert submit.partition(" ")[2] == "- --labels pie,kite --model demo --base-uri . --output 'o u t'"

    user.run(f"head -100 list.txt | {resume[1]}")
    assert user.run("clipfleet results 'o u t' --format csv | wc -l").strip() == "101"


def test_what_is_kept_outlives_its_terminal_and_serves_the_next_commands_until_it_is_stopped(
    user: User,
) -> None:
    with user.type(
        f"clipfleet-worker up --keep -- clipfleet classify images {LABELS} --output one"
    ) as terminal:
        seen = terminal.ends()
    assert "`clipfleet-worker up --stop` stops it" in seen
    up = UpFolder(user.folder / ".clipfleet").running()
    assert up is not None

    classify = f"clipfleet classify list.txt {LABELS} --chunk-size 20 --output two --job-id j2"
    with user.type(f"clipfleet-worker up -- {classify}") as terminal:
        terminal.wait_for(r"[1-9][\d,]*/1,?500")
        terminal.press_ctrl_c()
        seen = terminal.ends(130)
    goes_on = re.search(
        r"The job goes on without this terminal\. Watch it again with `(.+?)`, ", seen, re.MULTILINE
    )
    assert goes_on, seen
    user.run(f"source .clipfleet/env; {goes_on[1]}")
    assert user.run("clipfleet results two --format csv | wc -l").strip() == str(ITEMS + 1)
    assert UpFolder(user.folder / ".clipfleet").running() == up  # it is still the first one

    log = user.folder / ".clipfleet" / "up.log"
    worker = re.search(r"worker +pid (\d+)", log.read_text())
    assert worker
    os.kill(int(worker[1]), 9)
    wait_until(lambda: "worker is back" in log.read_text(), "the worker was restarted")

    assert "Stopped. " in user.run("clipfleet-worker up --stop")
    assert processes_of(user.home) == []
    assert "nothing runs on" in user.run("clipfleet-worker up --stop")


def test_an_output_outside_the_roots_leaves_nothing_that_blocks_the_same_command(user: User) -> None:
    """Also in a shell that has sourced the `env` of another folder, where a second `up` joins the first."""
    other = user.home / "other"
    user.run("clipfleet-worker up --keep")
    command = f"clipfleet-worker up -- clipfleet classify images {LABELS} --output results"
    env = shlex.quote(str(user.folder / ".clipfleet" / "env"))

    refused = user.run(f"source {env}; {command}", 1, folder=other)

    assert f"joining the Redis of {user.folder}/.clipfleet, whose `env` this shell has sourced" in refused
    assert f"read and write below {user.folder} only" in refused
    assert f"{other}/results is outside this worker's output roots" in refused
    assert "`clipfleet-worker up --root FOLDER`" in refused
    assert not list((other / "results").glob("data/*"))

    user.run("clipfleet-worker up --stop")
    assert "which has ended: start `up` in a new shell" in user.run(
        f"source {env}; {command}", 2, folder=other
    )
    user.run(f"clipfleet-worker up --keep --root . --root {other}")
    user.run(f"source {env}; {command.partition(' -- ')[2]}", folder=other)
    assert user.run("clipfleet results results --format csv | wc -l", folder=other).strip() == "6"
