"""A pseudo-terminal: what a user sees there, and what a Ctrl-C does."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.waiting import wait_until

_LAST_WORDS_SECONDS = 5.0  # of a terminal that a process in the background keeps open
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
# A session of its own whose terminal is this one, as a terminal's program gives it to a shell.
_AT_THE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class PseudoTerminal:
    """Runs one line of bash at a terminal, which goes away when this is closed."""

    def __init__(self, line: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._here, there = pty.openpty()
        self._seen: list[bytes] = []
        try:
            self.process = subprocess.Popen(
                # The line is the shell's only command, which it becomes
                [sys.executable, "-c", _AT_THE_TERMINAL, "bash", "-c", line],
                cwd=folder, env={**environment, "TERM": "xterm", "COLUMNS": "300"},
                stdin=there, stdout=there, stderr=there, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(there)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        with suppress(OSError):  # nobody has it open any more
            while data := os.read(self._here, 65536):
                self._seen.append(data)

    @property
    def seen(self) -> str:
        """All that was shown so far, without control sequences."""
        return _CONTROL.sub("", b"".join(self._seen).decode(errors="replace"))

    def wait_for(self, pattern: str, seconds: float = 120.0) -> re.Match[str]:
        """Wait until a pattern is shown."""
        wait_until(
            lambda: re.search(pattern, self.seen) or self.process.poll() is not None,
            f"{pattern!r} is shown",
            seconds,
        )
        found = re.search(pattern, self.seen)
        assert found, self.seen
        return found

    def press_ctrl_c(self) -> None:
        """Press it once."""
        os.write(self._here, b"\x03")

    def ends(self, code: int = 0, seconds: float = 120.0) -> str:
        """Wait for the end with this exit code; returns all that was shown."""
        assert self.process.wait(seconds) == code, self.seen
        self._reader.join(_LAST_WORDS_SECONDS)  # they may still be under way
        return self.seen

    def close(self) -> None:
        """Take the terminal away: its session gets a SIGHUP."""
        if self._here < 0:
            return
        here, self._here = self._here, -1
        with suppress(ProcessLookupError):
            if self.process.poll() is None:
                self.process.terminate()
        os.close(here)
        self.process.wait(60)
