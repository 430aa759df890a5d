"""In production nothing happens at a crash point, and no setting leads to one."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from clipfleet import crash_points, settings
from clipfleet.client import Client
from clipfleet.crash_points import NO_CRASH_POINTS, CrashPoint
from clipfleet.submission import Submission
from clipfleet_worker import cli
from clipfleet_worker import settings as worker_settings
from clipfleet_worker.claims import Claims
from clipfleet_worker.finishing import Finisher
from clipfleet_worker.item_path import ItemPath
from clipfleet_worker.job_contexts import JobContexts
from clipfleet_worker.lifecycle import Worker
from clipfleet_worker.pipeline import Pipeline
from clipfleet_worker.sinks.parts import PartSink
from clipfleet_worker.sinks.redis import RedisSink
from clipfleet_worker.tasks import Tasks

TAKERS = [
    Client, Submission, Worker, Tasks, Claims, Pipeline, ItemPath, JobContexts, PartSink, RedisSink, Finisher,
]  # fmt: skip


def test_the_points_have_the_names_of_the_design() -> None:
    names = "after_claim mid_fetch before_write mid_write after_write after_complete before_ack"
    assert {point.value for point in CrashPoint} == {*names.split(), "mid_submit", "after_seal", "mid_finish"}


@pytest.mark.parametrize("taker", TAKERS, ids=lambda taker: taker.__name__)
def test_whoever_is_given_nothing_has_the_points_at_which_nothing_happens(taker: Any) -> None:
    assert inspect.signature(taker).parameters["crash_points"].default is NO_CRASH_POINTS
    for point in CrashPoint:
        NO_CRASH_POINTS.reach(point)


@pytest.mark.parametrize("module", [cli, settings, worker_settings])
def test_no_setting_and_no_variable_leads_to_them(module: Any) -> None:
    assert "crash" not in inspect.getsource(module)
    assert "environ" not in inspect.getsource(crash_points)
