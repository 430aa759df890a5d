"""What limits a job, from tables of what workers have measured."""

from __future__ import annotations

import json
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
ENCODES = {
    Meter.BEYOND: 25_000.0, Meter.DECODE_BUSY: 120.0, Meter.FORWARD_BUSY: 97.0,
}  # fmt: skip


def limit(*changes: dict[Any, float], **options: Any) -> str:
    seconds: dict[str, float] = {}
    for change in (CALM, *changes):
        seconds |= change
    found = limit_of(Meters(seconds), **{"rows": 5120, **options})
    return str(found)


class TestFetch:
    def test_slow_answers(self) -> None:
        words = "fetch: waiting for connections and answers takes most of the items' time"
        assert limit(SLOW_ANSWERS) == words

    def test_hosts_at_their_caps(self) -> None:
        words = "fetch: hosts at their connection caps hold up most of the items (94 % of their time)"
        assert limit(CAPPED) == words
        assert limit(CAPPED, {Meter.TURNS: 12_000.0}) == limit(SLOW_ANSWERS)

    def test_where_another_job_keeps_the_device_busy_hosts_still_limit_their_own(self) -> None:
        assert limit(ENCODES, CAPPED) == limit(CAPPED)

    def test_a_device_that_another_job_keeps_busy_while_the_model_loads(self) -> None:
        """97 % of the minute of loading, 70 % of what comes after it: not busy nearly all the time."""
        loads = {Step.LOAD: 60.0, Meter.FORWARD_BUSY: 0.97 * 60 + 0.7 * 100, Meter.DECODE_BUSY: 200.0}
        assert limit(SLOW_ANSWERS, loads) == limit(SLOW_ANSWERS)
        assert limit(ENCODES, loads) == "encode: the device is busy 80 % of the time (cpu, bf16)"

    def test_a_few_dead_hosts_beside_a_busy_device_do_not(self) -> None:
        assert limit(ENCODES, SLOW_ANSWERS).startswith("encode: ")

    def test_files_that_are_slow_to_read(self) -> None:
        words = "fetch: reading files takes 75 % of the time of 2 threads"
        assert limit(DECODES, {Meter.READING: 540.0}) == words


class TestDecodeAndForward:
    def test_the_busier_one_limits(self) -> None:
        assert limit(DECODES) == "decode: 2 threads busy 97 % of the time"
        assert limit(ENCODES) == "encode: the device is busy 97 % of the time (cpu, bf16)"

    def test_one_thread(self) -> None:
        alone = {Meter.DECODE_CAPACITY: 95.0, Meter.DECODE_BUSY: 99.0}
        assert limit(DECODES, alone) == "decode: 1 thread busy 99 % of the time"

    def test_texts_have_no_fetch_and_no_decode(self) -> None:
        assert limit(ENCODES, {Meter.DECODE_BUSY: 0}).startswith("encode: ")

    def test_where_nothing_is_busy_nothing_is_said(self) -> None:
        assert limit({Meter.BEYOND: 100.0}) == "None"

    def test_no_share_is_more_than_all(self) -> None:
        assert "100 %" in limit(DECODES, {Meter.DECODE_BUSY: 200.4})


class TestSteps:
    @pytest.mark.parametrize(
        ("step", "words"),
        [
            (Step.WRITE, "write: writing parts takes 80 % of the chunks' time"),
            (Step.READ, "write: reading the staged items takes 80 % of the chunks' time"),
            (Step.LABELS, "labels: encoding their texts takes 80 % of the chunks' time"),
            (Step.SCORE, "score: comparing with the labels takes 80 % of the chunks' time"),
        ],
    )
    def test_the_step_that_takes_longest(self, step: Step, words: str) -> None:
        assert limit(dict.fromkeys(Step, 0.0), {Step.ITEMS: 100.0, step: 400.0}) == words

    def test_a_slow_output_is_slow_to_read_too(self) -> None:
        slow = {Step.ITEMS: 100.0, Step.READ: 90.0, Step.WRITE: 60.0}
        assert limit(slow) == (
            "write: writing parts takes 24 %, reading the staged items 36 % of the chunks' time"
        )

    def test_slow_writes_beside_a_busy_device_limit_nothing(self) -> None:
        """Five of eight chunks are being written, and the device is never idle all the same."""
        busy = {Step.WRITE: 160.0, Meter.FORWARD_BUSY: 250.0, Meter.DECODE_BUSY: 200.0}
        assert limit(ENCODES, busy).startswith("encode: ")

    def test_loading_once_must_outweigh_all_that_comes_after_it(self) -> None:
        assert limit({Step.LOAD: 300.0}) == "load: waiting for it to load takes 75 % of the chunks' time"
        busy = {Step.LOAD: 150.0, Meter.DECODE_BUSY: 400.0}
        assert limit(DECODES, busy) == "decode: 2 threads busy 80 % of the time"

    def test_steps_alike(self) -> None:
        alike = dict.fromkeys(Step, 25.0) | {Step.LOAD: 0.0, Step.READ: 0.0}
        assert limit(alike, {Step.SCORE: 26.0}) == "None"


class TestSubmit:
    def test_workers_without_work(self) -> None:
        words = "submit: no work for the workers 80 % of the time"
        assert limit(DECODES, starved_seconds=80, lasted_seconds=100) == words

    def test_a_moment_of_it(self) -> None:
        assert limit(DECODES, starved_seconds=2, lasted_seconds=100).startswith("decode: ")


class TestLittle:
    def test_nothing_is_said_of_a_few_rows_a_moment_or_nothing(self) -> None:
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

        since = now.since(earlier)

        assert since.seconds == {Meter.FETCHING: 20.0, Step.WRITE: 0.5, Step.READ: 1.0}

    def test_the_device_of_most_of_the_work(self) -> None:
        assert Meters(CALM).device == "cpu, bf16"  # type: ignore[arg-type]  # a Mapping is invariant in its keys
        assert NO_METERS.device == ""


def test_a_snapshot_names_its_limit() -> None:
    busy = Meters({str(name): value for name, value in (CALM | DECODES).items()})
    status = make_status(meters=busy, ran=100, created_ms=1000, asked_ms=11_000, starved_ms=1000)

    assert status.limit == Limit(LimitingStep.DECODE, "2 threads busy 97 % of the time")
    starved = make_status(
        meters=busy, ran=100, created_ms=1000, finished_ms=3000, asked_ms=9**9, starved_ms=1900
    )
    assert str(starved.limit) == "submit: no work for the workers 95 % of the time"
