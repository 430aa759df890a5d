"""The checker of `make chaos` finds every kind of broken world; a seed decides all that a run does."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from clipfleet.outputs import objects
from ops.chaos import checker, schedule, workload
from ops.chaos.changes import Act, Change, wrong_changes
from ops.chaos.checker import Attempts, Counts, Event, JobLeft, Kind, Row, Violation, World, check, count_rows
from ops.chaos.history import History, read_history
from ops.chaos.scales import SCALES, parts_of
from ops.chaos.schedule import FaultKind, Scale, make_schedule
from ops.chaos.soak import Sample, growths
from ops.chaos.values import Values
from ops.chaos.workload import ItemKind, ItemPlan, JobPlan, OutputKind, plan_before, plan_job

HASHES = [f"hash-{image}" for image in range(workload.IMAGES)]
SOURCES = checker.Sources(HASHES, lambda job_id, item: f"/{job_id}/{item.item_id}.jpg")
EVENTS = [Event("a", 0, "completed_with_errors"), Event("b", 0, "-"), Event("b", 1, "-")]
KINDS = [ItemKind.FILE, ItemKind.SICK, ItemKind.URL, ItemKind.TEXT, ItemKind.FILE]


def a_plan(job_id: str = "job", *, is_retried: bool = False) -> JobPlan:
    items = tuple(ItemPlan(f"item-{index}", kind, index) for index, kind in enumerate(KINDS))
    return JobPlan(
        job_id=job_id, task="embed", output=OutputKind.FOLDER, part_format="parquet", lane="normal",
        chunk_size=2, items=items, is_retried=is_retried,
    )  # fmt: skip


def as_promised(plan: JobPlan) -> JobLeft:
    """What must be left of a job."""
    generation = plan.generations - 1
    rows = [
        Row(
            index, item.item_id, item.error_code(generation), HASHES[item.image],
            values=values_of(plan, item),
        )
        for index, item in enumerate(plan.items)
    ]  # fmt: skip
    parts = [part_of(plan, chunk_id) for chunk_id in range(plan.chunks)]
    left = JobLeft("completed_with_errors", generation, rows, parts=parts, listed=listed(parts))
    return with_counters(left, rows)


def values_of(plan: JobPlan, item: ItemPlan) -> Values:
    uri = f"/{plan.job_id}/{item.item_id}.jpg"
    if item.error_code(plan.generations - 1):
        return Values(uri, "failed", "404", (None, None), None)
    return Values(uri, "ok", None, workload.IMAGE_SIZE, "model", numbers=(item.image / workload.IMAGES, 0.5))


def part_of(plan: JobPlan, chunk_id: int) -> checker.PartLeft:
    generation, indexes = plan.generations - 1, plan.items_of(chunk_id)
    failed = [index for index in indexes if plan.items[index].error_code(generation)]
    return checker.PartLeft(
        chunk_id, True, generation, len(indexes) - len(failed), len(failed), indexes, failed
    )


def listed(parts: list[checker.PartLeft]) -> list[tuple[int, int, int]]:
    return [(part.chunk_id, len(part.indexes), part.failed) for part in parts]


def with_counters(left: JobLeft, rows: list[Row]) -> JobLeft:
    """All that counts the rows of a job says what they say."""
    errors = [(row.item_index, row.error_code) for row in rows if row.error_code]
    codes = dict(Counter(code for _, code in errors))
    counts = Counts(len(rows), len(rows) - len(errors), len(errors), codes)
    return replace(left, rows=rows, ledger=counts, manifest=counts, errors=errors)


def good_world() -> World:
    plans = [a_plan("a"), a_plan("b", is_retried=True)]
    return World([(plan, as_promised(plan)) for plan in plans], EVENTS, SOURCES)


def with_rows(change: Callable[[list[Row]], list[Row]]) -> World:
    """The rows of the first job changed, all its counters with them."""
    world = good_world()
    (plan, left), *others = world.jobs
    rows = change(list(left.rows))
    left = with_counters(left, rows)
    return replace(world, jobs=[(plan, left), *others])


def with_job(**changes: object) -> World:
    world = good_world()
    (plan, left), *others = world.jobs
    return replace(world, jobs=[(plan, replace(left, **changes)), *others])  # type: ignore[arg-type]


def with_part(**changes: object) -> World:
    """The first part of the first job changed."""
    (_, left), *_ = good_world().jobs
    first, *others = left.parts or []
    return with_job(parts=[replace(first, **changes), *others])  # type: ignore[arg-type]


def with_row(index: int, **changes: object) -> World:
    """One row of the first job changed."""
    return with_rows(
        lambda rows: [replace(row, **changes) if row.item_index == index else row for row in rows]
    )  # type: ignore[arg-type]


def with_values(index: int, **changes: object) -> World:
    (_, left), *_ = good_world().jobs
    return with_row(index, values=replace(left.rows[index].values, **changes))  # type: ignore[type-var]


def with_world(**changes: object) -> World:
    return replace(good_world(), **changes)  # type: ignore[arg-type]


def test_a_promise_kept_is_no_violation() -> None:
    assert check(good_world()) == []


TWICE = [Event("x", 0, "-")] * 2
OTHER_VECTOR = [*good_world().jobs[1:], *with_values(2, numbers=(0.9, 0.5)).jobs[:1]]
GIVEN_UP = with_rows(lambda rows: [replace(row, error_code="chunk_failed") for row in rows[:2]] + rows[2:])
BROKEN: dict[Kind, dict[str, World]] = {
    Kind.MISSING: {
        "a row is missing": with_rows(lambda rows: rows[:-1]),
        "all rows are missing": with_rows(lambda _: []),
        "noticed on the way": with_world(noticed=[Violation(Kind.MISSING, "a", "items 1")]),
    },
    Kind.DOUBLED: {"a row is there twice": with_rows(lambda rows: [*rows[:2], rows[1], *rows[2:]])},
    Kind.STRANGE: {"a row too many": with_rows(lambda rows: [*rows, Row(5, "item-5")])},
    Kind.ORDER: {"two rows exchanged": with_rows(lambda rows: [rows[1], rows[0], *rows[2:]])},
    Kind.WRONG: {
        "another item's id": with_row(0, item_id="item-1"),
        "another image": with_row(0, content_hash="hash-9"),
        "an ok row without a vector": with_row(0, has_result=False),
        "a good item failed": with_row(0, error_code="timeout"),
        "a bad item passed": with_row(1, error_code=None),
        "another item's uri": with_values(0, uri="/a/item-1.jpg"),
        "an ok row that failed": with_values(0, status="failed"),
        "a failed row without a reason": with_values(1, error_detail=None),
        "width and height exchanged": with_values(0, size=(48, 64)),
        "no model named": with_values(0, fingerprint=None),
        "another vector in the second job": with_world(jobs=OTHER_VECTOR),
    },
    Kind.GIVEN_UP: {"a chunk given up": GIVEN_UP},
    Kind.NOT_FINISHED: {
        "still running": with_job(state="running"),
        "ended without the errors": with_job(state="completed"),
        "another generation": with_job(generation=1),
        "no mark of success": with_job(is_marked=False),
    },
    Kind.COUNTERS: {
        "a counter too high": with_job(ledger=Counts(5, 4, 2, {"not_found": 1, "not_an_image": 1})),
        "a code too many": with_job(manifest=Counts(5, 3, 2, {"not_found": 2})),
        "an error line is missing": with_job(errors=[(1, "not_found")]),
        "an error line of another item": with_job(errors=[(0, "not_found"), (3, "not_an_image")]),
    },
    Kind.PART: {
        "another part's rows": with_part(indexes=[2, 3]),
        "another job's part": with_part(is_own=False),
        "a part of a generation to come": with_part(generation=1),
        "a part that counts wrongly": with_part(ok=2),
        "a manifest without parts": with_job(listed=[]),
    },
    Kind.FOREIGN: {"a part of a job before": with_job(strays=["data/part-00000007.parquet"])},
    Kind.CHANGED: {"a part written in place": with_world(changes=[("a", "part was written")])},
    Kind.EVENTS: {
        "a bystander ended twice": with_world(events=[*EVENTS, *TWICE], bystanders=frozenset({"x"})),
        "no event": with_world(events=EVENTS[1:]),
        "an event twice": with_world(events=[*EVENTS, Event("b", 1, "-")]),
        "an event of no job": with_world(events=[*EVENTS, Event("c", 0, "-")]),
    },
    Kind.SCRATCH: {"scratch is left": with_job(scratch=["_clipfleet/tmp/x"])},
    Kind.UNREADABLE: {"a part that is torn": with_job(problem="part-00000001.parquet: no footer")},
    Kind.ATTEMPTS: {
        "too many losses": with_world(attempts=[Attempts("a", 0, 6, 0, deaths=5)]),
        "too many failures": with_world(attempts=[Attempts("a", 0, 0, 6)]),
    },
    Kind.NO_TTL: {"a key for ever": with_world(keys_without_ttl=["clipfleet:x"])},
    Kind.PROCESS: {"a child left": with_world(processes=["17 python"])},
    Kind.GROWTH: {"a worker grows": with_world(growing=["worker 1: +50 MB"])},
    Kind.WORKER_END: {"a worker gone": with_world(worker_ends=["worker 1: exit code 70"])},
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, worlds in BROKEN.items() for name in worlds]
)
def test_a_broken_world_is_found(kind: Kind, name: str) -> None:
    assert [violation.kind for violation in check(BROKEN[kind][name])] == [kind]


def test_every_kind_of_violation_is_proven_to_be_found() -> None:
    assert set(BROKEN) == set(Kind)


def test_a_retry_that_left_a_part_as_it_was_is_found() -> None:
    world = good_world()
    other, (plan, left) = world.jobs
    parts = [replace(part, generation=0) for part in left.parts or []]
    found = check(replace(world, jobs=[other, (plan, replace(left, parts=parts))]))

    assert [violation.kind for violation in found] == [Kind.PART]
    assert found[0].count == 2  # the part whose rows were all fine stays of generation 0


def test_a_bystander_may_end_once_or_not_at_all() -> None:
    world = replace(good_world(), bystanders=frozenset({"x", "y"}), attempts=[Attempts("x", 0, 9, 9)])

    assert check(replace(world, events=[*EVENTS, Event("x", 0, "-")])) == []


APPEARED, MODIFIED, REMOVED = Act.APPEARED, Act.MODIFIED, Act.REMOVED
PART, OTHER, MANIFEST, SUCCESS = (
    "data/part-00000000.jsonl",
    "data/part-00000001.jsonl",
    "_manifest.json",
    "_SUCCESS",
)
LATE = "data/part-00000002.jsonl"


DONE = [(MANIFEST, APPEARED), (SUCCESS, APPEARED)]
RETRIED = [(SUCCESS, REMOVED), (PART, APPEARED), *DONE]


@pytest.mark.parametrize(
    ("acts", "words"),
    [
        ([(PART, APPEARED), (PART, MODIFIED), (PART, MODIFIED)], [f"{PART} was written to where it is read"]),
        ([(PART, APPEARED), (PART, REMOVED)], [f"{PART} was removed"]),
        ([(PART, APPEARED)] * 3, [f"{PART} was put in place twice in one generation"]),
        ([(SUCCESS, APPEARED), (MANIFEST, APPEARED)], ["_SUCCESS came before _manifest.json"]),
        ([*DONE, (PART, APPEARED)], [f"{PART} appeared while _SUCCESS was there"]),
        ([*DONE, (SUCCESS, REMOVED), (SUCCESS, APPEARED)], ["_SUCCESS came before _manifest.json"]),
        ([(PART, APPEARED), (OTHER, APPEARED), *DONE, *RETRIED, *DONE], []),
    ],
)
def test_what_must_not_become_of_an_output_is_found(acts: list[tuple[str, Act]], words: list[str]) -> None:
    changes = [Change("a", name, act) for name, act in acts]

    assert list(wrong_changes(changes, {"a": 2})) == [("a", word) for word in words]


def test_a_store_may_let_a_retry_put_equal_parts_over_each_other() -> None:
    first, retried, success = (
        Change("a", name, APPEARED, content) for name, content in ((PART, "0"), (PART, "1"), (SUCCESS, "2"))
    )
    begun = [first, Change("a", MANIFEST, APPEARED), success, Change("a", SUCCESS, REMOVED), retried]
    ended = [*begun, Change("a", MANIFEST, APPEARED), success]

    assert not list(wrong_changes([*ended, retried], {"a": 2}))
    assert list(wrong_changes([*ended, first], {"a": 2}))  # by a worker of the generation before
    assert list(wrong_changes([first, first], {"a": 2}))  # no retry


def test_a_part_that_was_put_whatever_was_there_is_found() -> None:
    careless = Change("a", PART, APPEARED, "0", is_conditional=False)

    assert list(wrong_changes([careless], {"a": 2})) == [("a", f"{PART} was put in place whatever was there")]


def test_the_job_before_has_more_parts_and_other_items() -> None:
    plan = plan_job(5, 0)
    before = plan_before(plan, is_slow=True)

    assert before.chunks > plan.chunks
    assert (before.output, before.part_format) == (plan.output, plan.part_format)
    assert before.job_id != plan.job_id
    assert not {item.item_id for item in before.items} & {item.item_id for item in plan.items}


def test_rows_are_counted_and_reported_in_short() -> None:
    assert check(with_rows(lambda _: [])) == [Violation(Kind.MISSING, "a", "items 0, 1, 2, 3, 4", 5)]
    missing = check(with_rows(lambda rows: rows[3:]))
    doubled = check(with_rows(lambda rows: [rows[0], rows[0], *rows]))

    assert count_rows(missing, Kind.MISSING) == 3
    assert count_rows(doubled, Kind.DOUBLED) == 2
    assert count_rows([], Kind.MISSING) == 0


def test_a_chunk_may_be_given_up_that_five_workers_died_of() -> None:
    at_the_bound = with_world(attempts=[Attempts("a", 0, 5, 5)])
    enough, too_few = Attempts("a", 0, 6, 0, deaths=6), Attempts("a", 0, 4, 0, deaths=4)

    assert check(at_the_bound) == []
    assert check(replace(GIVEN_UP, attempts=[enough])) == []
    assert [found.kind for found in check(replace(GIVEN_UP, attempts=[too_few]))] == [Kind.GIVEN_UP]


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
class TestSchedule:
    def test_a_seed_decides_everything(self, scale: Scale) -> None:
        assert make_schedule(7, scale) == make_schedule(7, scale)
        assert make_schedule(7, scale) != make_schedule(8, scale)

    def test_it_has_what_the_scale_says(self, scale: Scale) -> None:
        faults = make_schedule(1, scale)
        counts = {kind: sum(fault.kind is kind for fault in faults) for kind in scale.counts}

        assert counts == scale.counts
        assert scale.counts[FaultKind.ZOMBIE] >= 1 and scale.counts[FaultKind.FREEZE_IN_STEP] >= 1
        assert [fault.number for fault in faults] == list(range(1, len(faults) + 1))
        assert sorted(fault.at_seconds for fault in faults) == [fault.at_seconds for fault in faults]
        assert {fault.slot for fault in faults} <= set(range(scale.workers))

    def test_its_redis_is_one_that_its_faults_are_for(self, scale: Scale) -> None:
        of_redis = {kind for kind in scale.counts if kind in schedule.REDIS_FAULTS}

        assert (of_redis == {FaultKind.FAILOVER}) is scale.with_sentinels
        assert FaultKind.FAILOVER not in of_redis or scale.with_sentinels

    def test_a_server_has_one_trouble_at_a_time(self, scale: Scale) -> None:
        for kinds in (schedule.REDIS_FAULTS, schedule.S3_FAULTS):
            faults = [fault for fault in make_schedule(3, scale) if fault.kind in kinds]
            for before, after in pairwise(faults):
                assert after.at_seconds > before.ends_at_seconds + 2


def test_the_nightly_scale_is_what_was_promised() -> None:
    counts: Counter[FaultKind] = sum((Counter(scale.counts) for scale in parts_of("nightly")), Counter())
    deaths = counts[FaultKind.KILL] + counts[FaultKind.CRASH_POINT] + counts[FaultKind.PRODUCER_CRASH]

    assert deaths >= 1000
    assert counts[FaultKind.REDIS_TERMINATE] + counts[FaultKind.REDIS_KILL] >= 100
    assert counts[FaultKind.REDIS_FREEZE] + counts[FaultKind.REDIS_HALF_OPEN] >= 100
    assert counts[FaultKind.FAILOVER] >= 50
    assert sum(scale.soak_seconds for scale in parts_of("nightly")) == 3600


def test_every_crash_point_is_in_a_run_of_ten_minutes() -> None:
    faults = make_schedule(1, SCALES["default"])
    kinds = (FaultKind.CRASH_POINT, FaultKind.PRODUCER_CRASH)
    points = {fault.variant for fault in faults if fault.kind in kinds}

    assert points == {*schedule.WORKER_CRASH_POINTS, *schedule.PRODUCER_CRASH_POINTS}


def test_a_job_is_planned_by_seed_and_number_alone() -> None:
    plans = [plan_job(5, number) for number in range(60)]

    assert plan_job(5, 17) == plans[17]
    assert plan_job(6, 17) != plans[17]
    assert {plan.output for plan in plans} == set(OutputKind)
    assert {plan.part_format for plan in plans} == {"parquet", "jsonl"}
    assert {plan.task for plan in plans} == {"embed", "classify"}
    assert {plan.generations for plan in plans} == {1, 2}
    assert {item.kind for plan in plans for item in plan.items} == set(ItemKind) - {ItemKind.SLOW}


def soaked(mebibytes: float, descriptors: int) -> list[Sample]:
    """What is seen of a worker that grows by so much."""
    return [Sample(1, at, 300 + mebibytes * at / 99, 40 + descriptors * at // 99) for at in range(100)]


@pytest.mark.parametrize(
    ("mebibytes", "descriptors", "is_flat"),
    [(0, 0, True), (10, 3, True), (40, 0, False), (0, 30, False), (-50, -20, True)],
)
def test_a_worker_that_grows_in_a_soak_is_found(mebibytes: float, descriptors: int, is_flat: bool) -> None:
    (growth,) = growths(soaked(mebibytes, descriptors))

    assert growth.is_flat is is_flat
    assert str(growth).startswith("worker 1, 79 s: memory ")
    assert growths(soaked(mebibytes, descriptors)[:9]) == []  # moments say nothing


def test_a_history_is_read_back_without_its_torn_last_line(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl", began=0.0)
    history.note("fault", number=1)
    at_seconds = history.note("worker_ended", slot=2, code=-9)
    history.close()
    with history.path.open("a") as file:
        file.write('{"what": "torn')

    events = list(read_history(history.path))

    assert [event["what"] for event in events] == ["fault", "worker_ended"]
    assert events[1] == {"at_seconds": round(at_seconds, 4), "what": "worker_ended", "slot": 2, "code": -9}
    assert json.dumps(events[0])


def test_a_part_of_the_job_before_is_found_in_an_output_that_was_taken() -> None:
    before = [Change("a", name, APPEARED) for name in (PART, OTHER, LATE)]
    cleared = [Change("a", name, REMOVED) for name in (PART, OTHER, LATE)]
    taken = [*before, *cleared, Change("a", objects.JOB_FILE, APPEARED)]

    def words_of(*after: Change) -> list[str]:
        return [words for _, words in wrong_changes([*taken, *after], {"a": 2}, {"a"})]

    assert not words_of(Change("a", PART, APPEARED))
    assert words_of(Change("a", LATE, APPEARED)) == [f"{LATE} appeared, of another job: this one has 2 parts"]
    assert words_of(Change("a", LATE, REMOVED)) == [f"{LATE} was removed"]
    assert words_of(*[Change("a", PART, APPEARED)] * 2)
    assert not list(wrong_changes([*before, *cleared], {"a": 2}, {"a"}))  # not taken yet
    assert not list(wrong_changes(before, {}))
