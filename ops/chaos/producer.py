"""A producer in a process of its own: `python -m ops.chaos.producer [CRASH_POINT]`, the job on stdin.

It kills itself when the crash point is reached; without one it submits and ends with code 0. What the world
does not let through ends with code 1: the harness submits again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from clipfleet.client import Client
from clipfleet.errors import ClipfleetError
from clipfleet.terminal.console import say_error
from ops.chaos.clipfleet_service import submit
from ops.chaos.crash_points import CrashPoint, stand_in_submits
from ops.chaos.workload import ItemKind, ItemPlan, JobPlan, OutputKind


class DiesAt:
    """SIGKILL at a crash point, the first time."""

    def __init__(self, point: CrashPoint) -> None:
        self._point = point

    def reach(self, point: CrashPoint) -> None:
        if point is self._point:
            os.kill(os.getpid(), signal.SIGKILL)


def plan_of(values: dict[str, Any]) -> JobPlan:
    """A plan that came as JSON."""
    items = tuple(
        ItemPlan(item["item_id"], ItemKind(item["kind"]), item["image"]) for item in values["items"]
    )
    return JobPlan(**{**values, "output": OutputKind(values["output"]), "items": items})


def main() -> int:
    """Submit the job of stdin."""
    order = json.load(sys.stdin)
    if sys.argv[1:2] > [""]:
        stand_in_submits(DiesAt(CrashPoint(sys.argv[1])).reach)
    try:
        with Client() as client:
            submit(client, plan_of(order["plan"]), Path(order["manifest"]), order["output"])
    except ClipfleetError as error:
        say_error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
