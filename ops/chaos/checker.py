"""Whether what a run left behind is what was promised. Pure: looks at values, touches nothing.

It knows nothing of ledgers and workers, so that a system which is built otherwise can be held to the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ops.chaos.values import References, Values
from ops.chaos.workload import ItemPlan, JobPlan

MAX_ATTEMPTS = 5  # of each kind: then a chunk is given up; the worker that does so may die, too


GIVEN_UP_CODE = "chunk_failed"


class Kind(StrEnum):
    """What may be wrong."""

    MISSING = "an input without a row"
    DOUBLED = "an input with several rows"
    STRANGE = "a row without an input"
    WRONG = "a row that says something else than it should"
    ORDER = "rows not in the order of the inputs"
    NOT_FINISHED = "a job that has not ended as it should"
    EVENTS = "not one event per job and generation"
    COUNTERS = "counters, rows and manifest differ"
    GIVEN_UP = "a chunk that was given up though it had not killed its workers"
    ATTEMPTS = "more attempts than allowed"
    PART = "a part that is not what its name, its footer or the manifest say"
    FOREIGN = "an object that should not be in the output"
    CHANGED = "an object that changed when it must not"
    UNREADABLE = "an output that cannot be read"
    NO_TTL = "a key that would stay for ever"
    SCRATCH = "a file left below _clipfleet/tmp"
    PROCESS = "a process left over"
    WORKER_END = "a worker that ended by itself"
    GROWTH = "a worker whose memory or descriptors grow"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong."""

    kind: Kind
    where: str  # a job's id, or what else it is about
    detail: str
    count: int = 1  # rows, where it is about rows


@dataclass(frozen=True, slots=True)
class Row:
    """What matters of a row."""

    item_index: int
    item_id: str
    error_code: str | None = None
    content_hash: str | None = None
    has_result: bool = True  # a label or a vector, as the task asks
    values: Values | None = None  # None: they are not looked at


@dataclass(frozen=True, slots=True)
class PartLeft:
    """One part of an output, as it is read."""

    chunk_id: int  # by its name
    is_own: bool  # by its footer it is the part of this chunk of this job
    generation: int
    ok: int
    failed: int
    indexes: Sequence[int]  # of its rows
    failed_indexes: Sequence[int]


@dataclass(frozen=True, slots=True)
class Counts:
    """What a ledger or manifest says of a job."""

    total: int
    ok: int
    failed: int
    codes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobLeft:
    """What is left of a job after the run."""

    state: str
    generation: int
    rows: Sequence[Row]
    ledger: Counts | None = None
    manifest: Counts | None = None  # None: this kind of output has none
    errors: Sequence[tuple[int, str]] | None = (
        None  # index and code of each line of `_errors.jsonl`; None: likewise
    )
    parts: Sequence[PartLeft] | None = None  # None: likewise
    listed: Sequence[tuple[int, int, int]] | None = None  # chunk, rows, failed of each part of the manifest
    strays: Sequence[str] = ()  # objects that are none of a finished job's
    is_marked: bool = True  # `_SUCCESS` is there, or this kind of output has none
    scratch: Sequence[str] = ()
    problem: str = ""  # why it could not be read
    is_away: bool = False  # that may have been the world's fault


@dataclass(frozen=True, slots=True)
class Event:
    """A completion event."""

    job_id: str
    generation: int
    state: str


@dataclass(frozen=True, slots=True)
class Attempts:
    """The most of a chunk's counters that were seen, in one generation of its job."""

    job_id: str
    chunk_id: int
    losses: int
    failures: int
    deaths: int = 0  # workers that the run killed or froze while they held the chunk

    @property
    def is_given_up_rightly(self) -> bool:
        """Whether so many workers died of it that its rows may say so."""
        return self.deaths >= MAX_ATTEMPTS


@dataclass(frozen=True, slots=True)
class Sources:
    """What the jobs of a run read."""

    image_hashes: Sequence[str]  # sha256 of each image of the workload
    uri: Callable[[str, ItemPlan], str | None] = lambda _job_id, _item: None  # None: not looked at


@dataclass(frozen=True, slots=True)
class World:
    """All that is left of a run."""

    jobs: Sequence[tuple[JobPlan, JobLeft]]
    events: Sequence[Event]
    sources: Sources
    attempts: Sequence[Attempts] = ()
    keys_without_ttl: Sequence[str] = ()
    processes: Sequence[str] = ()
    worker_ends: Sequence[str] = ()  # of workers that ended by themselves
    growing: Sequence[str] = ()  # workers that were larger after a soak
    bystanders: frozenset[str] = (
        frozenset()
    )  # further jobs, of which all that matters is that they end once at most
    changes: Sequence[tuple[str, str]] = ()  # wrong ones: of which job, and what
    noticed: Sequence[Violation] = ()  # while the run went on


def check(world: World) -> list[Violation]:
    """Everything that is wrong; an empty list is the promise kept."""
    found = list(world.noticed)
    references = References()
    for plan, left in world.jobs:
        given_up = frozenset(
            one.chunk_id for one in world.attempts if one.job_id == plan.job_id and one.is_given_up_rightly
        )
        found += check_job(plan, left, world.sources, references, given_up)
    found += _check_events(world)
    found += _check_attempts(one for one in world.attempts if one.job_id not in world.bystanders)
    found += [Violation(Kind.CHANGED, job_id, words) for job_id, words in world.changes]
    found += [Violation(Kind.NO_TTL, key, "no time to live") for key in world.keys_without_ttl]
    found += [Violation(Kind.PROCESS, "run", process) for process in world.processes]
    found += [Violation(Kind.WORKER_END, "run", end) for end in world.worker_ends]
    found += [Violation(Kind.GROWTH, "soak", growth) for growth in world.growing]
    return list(dict.fromkeys(found))


def count_rows(violations: Iterable[Violation], kind: Kind) -> int:
    """How many rows (or other things) a kind of violation is about, over all jobs."""
    return sum(violation.count for violation in violations if violation.kind is kind)


def check_job(
    plan: JobPlan,
    left: JobLeft,
    sources: Sources,
    references: References,
    given_up: frozenset[int] = frozenset(),
) -> Iterator[Violation]:
    """What is wrong with one job; `given_up`: chunks whose rows may say that they killed too many workers."""
    if left.problem:
        yield Violation(Kind.UNREADABLE, plan.job_id, left.problem)
    yield from _check_end(plan, left)
    yield from _check_rows(plan, left)
    yield from _check_contents(plan, left, sources, references, given_up)
    yield from _check_counters(plan, left)
    yield from _check_parts(plan, left)
    for name in left.strays:
        yield Violation(Kind.FOREIGN, plan.job_id, name)
    for name in left.scratch:
        yield Violation(Kind.SCRATCH, plan.job_id, name)


def _check_end(plan: JobPlan, left: JobLeft) -> Iterator[Violation]:
    generation = plan.generations - 1
    has_failures = any(row.error_code for row in left.rows) or plan.failed(generation)
    due = "completed_with_errors" if has_failures else "completed"
    if (left.state, left.generation) != (due, generation):
        detail = f"{left.state} in generation {left.generation}, not {due} in {generation}"
        yield Violation(Kind.NOT_FINISHED, plan.job_id, detail)
    if not left.is_marked:
        yield Violation(Kind.NOT_FINISHED, plan.job_id, "no _SUCCESS")


def _check_rows(plan: JobPlan, left: JobLeft) -> Iterator[Violation]:
    times = Counter(row.item_index for row in left.rows)
    missing = [index for index in range(len(plan.items)) if index not in times]
    doubled = {index: count for index, count in times.items() if count > 1}
    strange = [index for index in times if not 0 <= index < len(plan.items)]
    if missing:
        yield Violation(Kind.MISSING, plan.job_id, f"items {_some(missing)}", len(missing))
    if doubled:
        surplus = sum(doubled.values()) - len(doubled)
        yield Violation(Kind.DOUBLED, plan.job_id, f"items {_some(sorted(doubled))}", surplus)
    if strange:
        yield Violation(Kind.STRANGE, plan.job_id, f"items {_some(sorted(strange))}", len(strange))
    indexes = [row.item_index for row in left.rows]
    if indexes != sorted(indexes):
        yield Violation(Kind.ORDER, plan.job_id, "the indexes do not rise")


def _check_contents(
    plan: JobPlan, left: JobLeft, sources: Sources, references: References, may_be_given_up: frozenset[int]
) -> Iterator[Violation]:
    wrong, given_up = [], []
    for row in left.rows:
        if not 0 <= row.item_index < len(plan.items):
            continue
        item = plan.items[row.item_index]
        due = item.error_code(plan.generations - 1)
        if row.error_code == GIVEN_UP_CODE:
            if row.item_index // plan.chunk_size not in may_be_given_up:
                given_up.append(row.item_index)
        elif row.item_id != item.item_id:
            wrong.append(f"item {row.item_index} is called {row.item_id}")
        elif row.error_code != due:
            wrong.append(
                f"item {row.item_index} ({item.kind}) is {row.error_code or 'ok'}, not {due or 'ok'}"
            )
        elif due is None and not row.has_result:
            wrong.append(f"item {row.item_index} is ok without a result")
        elif due is None and row.content_hash != sources.image_hashes[item.image]:
            wrong.append(f"item {row.item_index} has the hash of another image")
        elif row.values is not None:
            uri = sources.uri(plan.job_id, item)
            problem = references.problem(plan, row.item_index, row.values, uri)
            wrong += [problem] if problem else []
    if wrong:
        yield Violation(Kind.WRONG, plan.job_id, f"{_some(wrong)}", len(wrong))
    if given_up:
        yield Violation(Kind.GIVEN_UP, plan.job_id, f"items {_some(given_up)}", len(given_up))


def _check_counters(plan: JobPlan, left: JobLeft) -> Iterator[Violation]:
    codes = Counter(row.error_code for row in left.rows if row.error_code)
    failed = sum(codes.values())
    due = Counts(len(left.rows), len(left.rows) - failed, failed, dict(codes))
    for name, counts in (("the ledger", left.ledger), ("the manifest", left.manifest)):
        if counts is not None and _without_zeros(counts) != due:
            yield Violation(Kind.COUNTERS, plan.job_id, f"{name} says {counts}, the rows say {due}")
    errors = [(row.item_index, row.error_code) for row in left.rows if row.error_code]
    if left.errors is not None and list(left.errors) != errors:
        detail = f"_errors.jsonl has {_some(left.errors)}, the failed rows are {_some(errors)}"
        yield Violation(Kind.COUNTERS, plan.job_id, detail)


def _check_parts(plan: JobPlan, left: JobLeft) -> Iterator[Violation]:
    if left.parts is None:
        return
    wrong = [words for part in left.parts for words in _wrong_with(plan, part)]
    if left.listed is not None:
        there = sorted((part.chunk_id, len(part.indexes), len(part.failed_indexes)) for part in left.parts)
        if sorted(left.listed) != there:
            wrong.append(f"the manifest lists {_some(sorted(left.listed))}, there are {_some(there)}")
    if wrong:
        yield Violation(Kind.PART, plan.job_id, _some(wrong), len(wrong))


def _wrong_with(plan: JobPlan, part: PartLeft) -> Iterator[str]:
    name, due = f"part {part.chunk_id}", plan.items_of(part.chunk_id)
    if not part.is_own:
        yield f"{name} is of another job or chunk by its footer"
    if list(part.indexes) != list(due):
        yield f"{name} has the rows {_some(part.indexes)}"
    if (part.ok, part.failed) != (len(part.indexes) - len(part.failed_indexes), len(part.failed_indexes)):
        yield f"{name} counts {part.ok} ok, {part.failed} failed of {len(part.failed_indexes)} failed rows"
    ran_again = any(plan.items[index].error_code(0) for index in due)
    earliest = plan.generations - 1 if ran_again else 0
    if not earliest <= part.generation < plan.generations:
        yield f"{name} is of generation {part.generation}, not {earliest} to {plan.generations - 1}"


def _check_events(world: World) -> Iterator[Violation]:
    seen = Counter((event.job_id, event.generation) for event in world.events)
    for job_id in world.bystanders:
        if seen.pop((job_id, 0), 0) > 1:
            yield Violation(Kind.EVENTS, job_id, "ended more than once")
    due = {(plan.job_id, generation) for plan, _ in world.jobs for generation in range(plan.generations)}
    for job_id, generation in sorted(due | set(seen)):
        count = seen[job_id, generation]
        expected = int((job_id, generation) in due)
        if count != expected:
            detail = f"{count} events of generation {generation}, not {expected}"
            yield Violation(Kind.EVENTS, job_id, detail)


def _check_attempts(attempts: Iterable[Attempts]) -> Iterator[Violation]:
    for one in attempts:
        if one.losses > max(MAX_ATTEMPTS, one.deaths) or one.failures > MAX_ATTEMPTS:
            where = f"{one.job_id}, chunk {one.chunk_id}"
            detail = f"{one.losses} losses, {one.failures} failures, {one.deaths} deaths"
            yield Violation(Kind.ATTEMPTS, where, detail)


def _without_zeros(counts: Counts) -> Counts:
    codes = {code: count for code, count in counts.codes.items() if count}
    return Counts(counts.total, counts.ok, counts.failed, codes)


def _some(values: Sequence[object]) -> str:
    shown = ", ".join(str(value) for value in values[:5])
    return shown + (f" and {len(values) - 5} more" if len(values) > 5 else "")
