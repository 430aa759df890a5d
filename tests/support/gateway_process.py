"""`clipfleet-gateway` in a process of its own: a replica that a test may kill, and its other commands."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.waiting import wait_until

_PROGRAM = (sys.executable, "-m", "clipfleet_gateway")
_LISTENS = re.compile(r"listens at (http://\S+)/v1$", re.MULTILINE)


def gateway_command(
    environment: Mapping[str, str], *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `clipfleet-gateway ARGUMENTS` to its end."""
    return subprocess.run(
        [*_PROGRAM, *arguments], env=dict(environment), input=stdin, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def made_key(environment: Mapping[str, str], name: str, *options: str) -> str:
    """What a client sends: the output of `clipfleet-gateway keys add`."""
    made = gateway_command(environment, "keys", "add", name, *options)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


class GatewayProcess:
    """`clipfleet-gateway serve ARGUMENTS`, on a free port unless the arguments say otherwise."""

    def __init__(
        self, environment: Mapping[str, str], folder: Path, *arguments: str, name: str = "gateway"
    ) -> None:
        """`folder` gets its log and what it prints, by `name`."""
        self._out, self._log = folder / f"{name}.out", folder / f"{name}.log"
        with self._out.open("w") as out, self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*_PROGRAM, "serve", *(() if "--port" in arguments else ("--port", "0")), *arguments],
                env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=log,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """Without a path; waits until it listens."""
        wait_until(lambda: _LISTENS.search(self.log()) or self.has_ended(), "the gateway listens")
        found = _LISTENS.search(self.log())
        assert found, self.log()
        return found[1]

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        """SIGKILL, as if the machine had lost power."""
        self.process.kill()
        self.process.wait()

    def terminate(self, seconds: float = 60.0) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(seconds)

    def printed(self) -> str:
        """Its stdout so far: the first key, or nothing."""
        return self._out.read_text()

    def log(self) -> str:
        return self._log.read_text(errors="replace")
