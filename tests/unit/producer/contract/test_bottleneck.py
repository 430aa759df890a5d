"""What limits a job, from tables of what workers have measured."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from clipfleet.contract.bottleneck import (
    NO_METERS,
    Limit,
    LimitingStep,
    Meter,
    Meters,
    Step,
    device_meter,
    limit_of,
)
from tests.support.jobs import make_status

# Ten chunks of 512 items, each in a worker's hands for ten seconds; two decode threads, one device.
CALM = {
    Step.READ: 1.0, Step.LABELS: 1.0, Step.ITEMS: 94.0, Step.SCORE: 1.0, Step.WRITE: 3.0,
    Meter.DECODE_CAPACITY: 190.0,
    Meter.DECODE_BUSY: 21.0, Meter.DECODING: 20.0, Meter.FORWARD_BUSY: 10.0,
    device_meter("cpu", "bf16"): 90.0, device_meter("cuda", "fp16"): 5.0,
}  # fmt: skip
CAPPED = {Meter.FETCHING: 25_000.0, Meter.TURNS: 24_000.0, Meter.BEYOND: 500.0}
SLOW_ANSWERS = {Meter.FETCHING: 25_000.0, Meter.BEYOND: 500.0}
DECODES = {
    Meter.BEYOND: 25_000.0, Meter.DECODE_BUSY: 194.0, Meter.DECODING: 180.0, Meter.FORWARD_BUSY: 60.0,
}  # fmt: skip
ENCODES = {Meter.BEYOND: 25_000.0, Meter.DECODE_BUSY: 120.0, Meter.FORWARD_BUSY: 97.0}
# 97 % of the minute of loading, 70 % of what comes after it: not busy nearly all the time.
LOADS = {Step.LOAD: 60.0, Meter.FORWARD_BUSY: 0.97 * 60 + 0.7 * 100, Meter.DECODE_BUSY: 200.0}
NO_STEPS = dict.fromkeys(Step, 0.0) | {Step.ITEMS: 100.0}
ALIKE = dict.fromkeys(Step, 25.0) | {Step.LOAD: 0.0, Step.READ: 0.0}
BEYOND = "fetch: waiting for connections and answers takes most of the items' time"
BUSY = "encode: the device is busy 97 % of the time (cpu, bf16)"
CHUNKS = "80 % of the chunks' time"
HOSTS = "fetch: hosts at their connection caps hold up most of the items (94 % of their time)"


def limit(*changes: dict[Any, float], **options: Any) -> str:
    seconds: dict[str, float] = {}
    for change in (CALM, *changes):
        seconds |= change
    return str(limit_of(Meters(seconds), **{"rows": 5120, **options}))


LIMITS: dict[str, tuple[list[dict[Any, float]], str]] = {
    "slow answers": ([SLOW_ANSWERS], BEYOND),
    "hosts at their caps": ([CAPPED], HOSTS),
    "hosts half the time at their caps": ([CAPPED, {Meter.TURNS: 12_000.0}], BEYOND),
    "hosts at their caps beside a device that another job keeps busy": ([ENCODES, CAPPED], HOSTS),
    "a device that another job keeps busy while the model loads": ([SLOW_ANSWERS, LOADS], BEYOND),
    "a busy device while the model loads": ([ENCODES, LOADS], BUSY.replace("97", "80")),
    "a few dead hosts beside a busy device": ([ENCODES, SLOW_ANSWERS], BUSY),
    "files that are slow to read": (
        [DECODES, {Meter.READING: 540.0}],
        "fetch: reading files takes 75 % of the time of 2 threads",
    ),
    "busy decode threads": ([DECODES], "decode: 2 threads busy 97 % of the time"),
    "a busy device": ([ENCODES], BUSY),
    "one thread": (
        [DECODES, {Meter.DECODE_CAPACITY: 95.0, Meter.DECODE_BUSY: 99.0}],
        "decode: 1 thread busy 99 % of the time",
    ),
    "texts, without fetch and decode": ([ENCODES, {Meter.DECODE_BUSY: 0}], BUSY),
    "nothing busy": ([{Meter.BEYOND: 100.0}], "None"),
    "no share above all": ([DECODES, {Meter.DECODE_BUSY: 200.4}], "decode: 2 threads busy 100 % of the time"),
    "slow writes": ([NO_STEPS, {Step.WRITE: 400.0}], f"write: writing parts takes {CHUNKS}"),
    "slow reads": ([NO_STEPS, {Step.READ: 400.0}], f"write: reading the items takes {CHUNKS}"),
    "many labels": ([NO_STEPS, {Step.LABELS: 400.0}], f"labels: encoding their texts takes {CHUNKS}"),
    "slow scores": ([NO_STEPS, {Step.SCORE: 400.0}], f"score: comparing with the labels takes {CHUNKS}"),
    "an output that is slow to read, too": (
        [{Step.ITEMS: 100.0, Step.READ: 90.0, Step.WRITE: 60.0}],
        "write: writing parts takes 24 %, reading the items 36 % of the chunks' time",
    ),
    "five of eight chunks being written while the device is never idle": (
        [ENCODES, {Step.WRITE: 160.0, Meter.FORWARD_BUSY: 250.0, Meter.DECODE_BUSY: 200.0}],
        BUSY,
    ),
    "loading": ([{Step.LOAD: 300.0}], "load: mostly spent loading the model (75 %)"),
    "loading once, outweighed by what comes after it": (
        [DECODES, {Step.LOAD: 150.0, Meter.DECODE_BUSY: 400.0}],
        "decode: 2 threads busy 80 % of the time",
    ),
    "steps alike": ([ALIKE, {Step.SCORE: 26.0}], "None"),
}


@pytest.mark.parametrize(("changes", "words"), LIMITS.values(), ids=LIMITS)
def test_what_limits_a_job(changes: list[dict[Any, float]], words: str) -> None:
    assert limit(*changes) == words


def test_workers_without_work_limit_more_than_a_moment() -> None:
    words = "submit: no work for the workers 80 % of the time"
    assert limit(DECODES, starved_seconds=80, lasted_seconds=100) == words
    assert limit(DECODES, starved_seconds=2, lasted_seconds=100).startswith("decode: ")


def test_nothing_is_said_of_a_few_rows_a_moment_or_nothing() -> None:
    assert limit(DECODES, rows=3) == "None"
    assert limit_of(Meters({Step.ITEMS: 0.4, Meter.BEYOND: 20.0}), rows=512) is None
    assert limit_of(NO_METERS, rows=512, starved_seconds=9, lasted_seconds=9) is None


class TestMeters:
    @pytest.mark.parametrize("meters", [NO_METERS, Meters({"write": 1.5})])
    def test_the_ledger_keeps_them(self, meters: Meters) -> None:
        assert Meters.of_json(json.dumps(meters.to_facts())) == meters

    @pytest.mark.parametrize("text", ["[]", "{", '{"write": "x"}', '{"write": []}'])
    def test_what_no_worker_has_said(self, text: str) -> None:
        with pytest.raises(ValueError):
            Meters.of_json(text)

    def test_what_came_since(self) -> None:
        earlier = Meters({Meter.FETCHING: 10.0, Step.WRITE: 1.0})
        now = Meters({Meter.FETCHING: 30.0, Step.WRITE: 1.5, Step.READ: 1.0})

        assert now.since(earlier).seconds == {Meter.FETCHING: 20.0, Step.WRITE: 0.5, Step.READ: 1.0}

    def test_the_device_of_most_of_the_work(self) -> None:
        assert Meters(CALM).device == "cpu, bf16"  # type: ignore[arg-type]  # a Mapping is invariant in its keys
        assert NO_METERS.device == ""


def test_a_snapshot_names_its_limit() -> None:
    busy = Meters({str(name): value for name, value in (CALM | DECODES).items()})
    status = make_status(meters=busy, ran=100, created_ms=1000, asked_ms=11_000, starved_ms=1000)

    assert status.limit == Limit(LimitingStep.DECODE, "2 threads busy 97 % of the time")
    starved = replace(status, finished_ms=3000, asked_ms=9**9, starved_ms=1900)
    assert str(starved.limit) == "submit: no work for the workers 95 % of the time"
