"""The `clipfleet-worker up` under which a command runs, and commands for the time after it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import Self

UP_VARIABLE = "_CLIPFLEET_UP"  # no setting: `up` sets it for its command


@dataclass(frozen=True, slots=True)
class UpAround:
    """The `up` under which a command runs, as an environment variable carries it."""

    pid: int  # 0: its Redis is not its own, and outlives it
    again: str  # the command line of that `up`, for a shell, without its command

    @classmethod
    def of_environment(cls) -> Self | None:
        """The `up` of this process; None: there is none."""
        pid, _, again = os.environ.get(UP_VARIABLE, "").partition(" ")
        return cls(int(pid), again) if pid.isdecimal() else None

    def value(self) -> str:
        """Value of the variable."""
        return f"{self.pid} {self.again}"

    @property
    def ends_with_us(self) -> bool:
        """Whether it ends with this very process, as this is its command, not a child of its command."""
        return self.pid == os.getppid()


def afterwards(*words: str) -> str:
    """A command for a shell that works once this one has ended, though its `up` may end with it."""
    command = shlex.join(words)
    up = UpAround.of_environment()
    return f"{up.again} -- {command}" if up is not None and up.ends_with_us else command
