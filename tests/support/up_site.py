"""A working directory in which `up` runs as a real process, with a stand-in for the worker.

It runs through a few lines of Python instead of `clipfleet-worker up`, so that the worker can be exchanged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.processes import is_gone
from tests.support.waiting import wait_until

_DRIVER = """
import json, sys
from pathlib import Path
from clipfleet_worker.cli.commands import main
from clipfleet_worker.machine.kept import KeptUp
from clipfleet_worker.machine.up import Up
given = json.loads(sys.argv[1])
directory, command, worker = Path(given["directory"]), given["command"], given["worker"]
if given["keep"]:
    again = [sys.executable, __file__, json.dumps(given | {"command": [], "keep": False})]
    sys.exit(KeptUp(directory).run(again, command))
if worker is None:
    sys.argv[1:] = ["up", "--no-worker", "--dir", str(directory), *(["--", *command] if command else [])]
    main()
sys.exit(Up(directory, worker_argv=worker, command=command).run())
"""

_WORKER = """
import json, os, signal, sys
from pathlib import Path
here = Path(sys.argv[1])
if "stuck" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
settings = {name: value for name, value in os.environ.items() if name.startswith("CLIPFLEET_")}
(here / "settings.json").write_text(json.dumps(settings))
with (here / "pids").open("a") as pids:
    print(os.getpid(), file=pids)
if "broken" in sys.argv:
    sys.exit("no such model")
Path(os.environ["CLIPFLEET_READY_FILE"]).touch()
while True:
    signal.pause()
"""


class Site:
    """The directory, and what is known about its `up` from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = folder / ".clipfleet"
        self.processes: list[subprocess.Popen[str]] = []
        (folder / "worker.py").write_text(_WORKER)
        (folder / "driver.py").write_text(_DRIVER)

    def start(
        self, *command: str, worker: str | None = "", keep: bool = False, **environment: str
    ) -> subprocess.Popen[str]:
        """Args: worker: how the stand-in behaves; None: none. keep: as with --keep."""
        argv = [sys.executable, f"{self.folder}/worker.py", str(self.folder), worker]
        arguments = {
            "directory": ".clipfleet", "worker": argv if worker is not None else None,
            "command": list(command), "keep": keep,
        }  # fmt: skip
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CLIPFLEET_")}
        with (self.folder / "stderr").open("a") as stderr:
            process = subprocess.Popen(
                [sys.executable, self.folder / "driver.py", json.dumps(arguments)], cwd=self.folder,
                env=clean | environment, stdout=subprocess.PIPE, stderr=stderr, text=True,
                start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def start_up(self, **options: Any) -> subprocess.Popen[str]:
        """Without a command; returns when it is up."""
        process = self.start(**options)
        self.wait_said("Press Ctrl-C to stop it")
        return process

    def run(self, *command: str, worker: str | None = "", **environment: str) -> tuple[int, str]:
        """Exit code and stdout of a whole run, of which nothing is left."""
        process = self.start(*command, worker=worker, **environment)
        output, _ = process.communicate(timeout=120)
        self.check_nothing_runs()
        return process.returncode, output

    def check_ends(self, process: subprocess.Popen[str], code: int = 0) -> None:
        assert process.wait(timeout=60) == code
        self.check_nothing_runs()

    @property
    def said(self) -> str:
        return (self.folder / "stderr").read_text()

    def wait_said(self, text: str) -> None:
        wait_until(lambda: text in self.said, f"{text!r} is said in {self.folder}/stderr")

    @property
    def url(self) -> str:
        state = json.loads((self.directory / "valkey" / "state.json").read_text())
        return f"redis://:{state['password']}@127.0.0.1:{state['port']}/0"

    def valkey_pids(self) -> list[int]:
        return [int(lock.read_text()) for lock in self.directory.glob("valkey/valkey.lock")]

    def worker_pids(self) -> list[int]:
        path = self.folder / "pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def worker_settings(self) -> dict[str, str]:
        return json.loads((self.folder / "settings.json").read_text())

    def check_nothing_runs(self) -> None:
        pids = [*self.valkey_pids(), *self.worker_pids()]
        wait_until(lambda: all(is_gone(pid) for pid in pids), f"all of {pids} are gone")

    def clean_up(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def start_to_stop(self) -> subprocess.Popen[str]:
        """`clipfleet-worker up --stop`, whose words are in its stdout."""
        program = Path(sys.executable).with_name("clipfleet-worker")
        process = subprocess.Popen(
            [program, "up", "--stop"], cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def stop(self) -> str:
        """What it says where all goes well."""
        process = self.start_to_stop()
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        return said
