"""Crash points that `make chaos` arms in a running worker: it dies or freezes there, at the named passage."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.s3 import S3Output
from ops.chaos.armed import IN_PUBLISH, IN_REPLACE, ArmedCrashPoints, Strike, arm, armed_in, struck_in
from ops.chaos.crash_points import CrashPoint


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _pid, number: sent.append(number))
    return sent


@pytest.fixture
def crash_points(tmp_path: Path) -> ArmedCrashPoints:
    (tmp_path / "armed").mkdir()
    return ArmedCrashPoints(tmp_path / "armed")


@pytest.mark.parametrize(
    ("strike", "number"), [(Strike.DEATH, signal.SIGKILL), (Strike.FREEZE, signal.SIGSTOP)]
)
def test_it_strikes_once_at_its_passage(
    strike: Strike, number: int, crash_points: ArmedCrashPoints, tmp_path: Path, signals: list[int]
) -> None:
    arm(tmp_path / "armed", 7, "mid_write", 2, strike)
    for point in (CrashPoint.MID_WRITE, CrashPoint.BEFORE_WRITE, CrashPoint.MID_WRITE, CrashPoint.MID_WRITE):
        crash_points.reach(point)

    assert signals == [number]
    assert armed_in(tmp_path / "armed") is None
    assert {kind: struck_in(tmp_path / "armed", kind) for kind in Strike} == {
        kind: {7} if kind is strike else set() for kind in Strike
    }


@pytest.fixture
def _outputs_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the harness does to the classes of a worker ends with the test."""
    for kind in (FolderOutput, S3Output):
        for name in ("publish", "replace_if"):
            monkeypatch.setattr(kind, name, getattr(kind, name))


@pytest.mark.usefixtures("_outputs_as_they_were")
def test_it_stands_before_a_part_becomes_visible_and_before_nothing_else(
    crash_points: ArmedCrashPoints, tmp_path: Path, signals: list[int]
) -> None:
    crash_points.stand_before_publishing()
    output = FolderOutput(tmp_path / "out")
    reached: list[str] = []

    for point, name in (
        (IN_PUBLISH, "_errors.jsonl"),
        (IN_PUBLISH, "data/part-0.jsonl"),
        (IN_REPLACE, "data/part-0.jsonl"),
    ):
        arm(tmp_path / "armed", 1, point, 1, Strike.FREEZE)
        with output.scratch() as scratch:
            scratch.write_text(f"{point}\n")
            version = output.version(name)
            assert output.replace_if(scratch, name, version) if version else output.publish(scratch, name)
        reached += [name] * (armed_in(tmp_path / "armed") is None)
        for left in (tmp_path / "armed").iterdir():
            left.unlink()

    assert reached == ["data/part-0.jsonl", "data/part-0.jsonl"]
    assert signals == [signal.SIGSTOP] * 2
    assert output.read("data/part-0.jsonl") == b"in_replace\n"
