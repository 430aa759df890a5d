"""The log of decisions in an output: files of records by day and job, to which records are only ever added.

```
_decisions/policies/<sha256>.json
_decisions/records/<day>/<job>-<generation>-<first item>-<last item>[-until-<day>].jsonl
```
`<day>` is the one in the ids, of the creation of the job; `until` is the last day on which the file is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from typing import Any

from clipfleet.contract.jobs import Job
from clipfleet.contract.policies import DecisionId, Policy, decision_day, job_digest
from clipfleet.errors import OutputDamagedError
from clipfleet.outputs import Output
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.parts import read_ahead

FOLDER = "_decisions"
RECORDS = f"{FOLDER}/records"
VERDICTS = f"{FOLDER}/verdicts"
POLICIES = f"{FOLDER}/policies"
_NAME = re.compile(
    r"(?P<digest>[0-9a-f]{12})-(?P<generation>\d+)-(?P<first>\d+)-(?P<last>\d+)(-until-(?P<until>\d{8}))?\.jsonl"
)
_DAY = re.compile(r"\d{8}")
_LAST_DAY = "99999999"
_READERS = 16  # files that are read at a time: uploads have one file each
_REQUIRED = frozenset(
    {"decision_id", "status", "reasons", "item_index", "item_id", "uri", "policy", "model_fingerprint"}
    | {"content_hash", "scores", "heads", "error", "job_id", "model", "at"}
)


@dataclass(frozen=True, slots=True)
class RecordFile:
    """A file of records, by its name."""

    day: str
    digest: str
    generation: int
    first: int  # item_index
    last: int
    until: str | None = None  # the last day on which it is kept

    @classmethod
    def of_name(cls, name: str) -> RecordFile | None:
        """Parse a name; None if it is not one of ours."""
        folder, _, own = name.rpartition("/")
        day, found = folder.rpartition("/")[2], _NAME.fullmatch(own)
        if found is None:
            return None
        generation, first, last = (int(found[group]) for group in ("generation", "first", "last"))
        return cls(day, found["digest"], generation, first, last, found["until"])

    @property
    def what(self) -> tuple[object, ...]:
        """Whose records it has."""
        return self.day, self.digest, self.generation, self.first, self.last

    @property
    def name(self) -> str:
        """The name of the object."""
        until = "" if self.until is None else f"-until-{self.until}"
        return f"{RECORDS}/{self.day}/{self.digest}-{self.generation}-{self.first}-{self.last}{until}.jsonl"


def write_policy(output: Output, job: Job, confirm: Confirm = unconditionally) -> None:
    """Keep the policy of a job in full, unless it is there: the submit's part of the log. Idempotent."""
    policy = Policy.of_job(job)
    if policy is None:
        raise ValueError(f"job {job.job_id} has no policy")
    text = json.dumps({"sha256": policy.sha256, **policy.model_dump(mode="json")}, ensure_ascii=False)
    output.create(f"{POLICIES}/{policy.sha256}.json", text.encode(), confirm=confirm)


def write_records(
    output: Output,
    job: Job,
    generation: int,
    records: Sequence[Mapping[str, Any]],
    today: date,
    *,
    may_replace: bool = False,
    confirm: Confirm = unconditionally,
) -> None:
    """Write the records of a chunk that one generation has decided; none is no file. Idempotent.

    Args:
        output: that holds the log.
        job: of the chunk.
        generation: see above.
        records: in the order of their items.
        today: of the decisions: the time for which they are kept begins with it.
        may_replace: whether the rows of the chunk are not final before its `complete`, as in Redis: then the
            file of a worker that died is replaced.
        confirm: called before each write.
    """
    if not records or job.decisions is None:
        return
    keep_days = job.decisions.keep_days
    until = None if keep_days is None else f"{today + timedelta(days=keep_days):%Y%m%d}"
    day, digest = decision_day(job.created_at), job_digest(job.job_id, job.created_at)
    name = RecordFile(day, digest, generation, *_span(records), until).name
    lines = (json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in records)
    data = "".join(f"{line}\n" for line in lines).encode()
    if may_replace:
        output.replace(name, data, confirm=confirm)
    else:
        output.create(name, data, confirm=confirm)


def has_records(output: Output, job: Job, generation: int, records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a file has these records of a generation, which may be only some of a chunk's."""
    first, last = _span(records)
    prefix = f"{job_digest(job.job_id, job.created_at)}-{generation}-"
    files = record_files(output, decision_day(job.created_at), prefix)
    return any(file.first <= first and last <= file.last for file in files)


def record_files(output: Output, day: str, digest: str = "") -> Iterator[RecordFile]:
    """The files of records of a day, or of one job."""
    for name in output.names(f"{RECORDS}/{day}/{digest}"):
        found = RecordFile.of_name(name)
        if found is not None:
            yield found


def days(output: Output, since: date | None = None, until: date | None = None) -> list[str]:
    """The days that have records, in order: those of the ids, from `since` to `until` inclusive."""
    first, last = (f"{since:%Y%m%d}" if since else ""), (f"{until:%Y%m%d}" if until else _LAST_DAY)
    return [name for name in output.folders(RECORDS) if _DAY.fullmatch(name) and first <= name <= last]


def all_records(
    output: Output, since: date | None = None, until: date | None = None
) -> Iterator[list[dict[str, Any]]]:
    """All records of a period, see `days`, file by file; each decision once. A few files are in memory.

    Raises:
        OutputDamagedError: a file is not what was written.
    """
    for day in days(output, since, until):
        # Of a chunk that was recorded on two days the names may differ in their `until` only.
        latest = {file.what: file for file in sorted(record_files(output, day), key=lambda one: one.name)}
        yield from read_ahead(partial(read_records, output), latest.values(), depth=_READERS)


def read_records(output: Output, file: RecordFile) -> list[dict[str, Any]]:
    """The records of a file; none if it was removed meanwhile.

    Raises:
        OutputDamagedError: they are not what was written.
    """
    data = output.read(file.name)
    try:
        found = [json.loads(line) for line in (data or b"").decode().split("\n") if line]
        if all(record.keys() >= _REQUIRED for record in found):
            return found
        problem = "a record lacks a key"
    except (ValueError, AttributeError) as error:
        problem = str(error)
    raise OutputDamagedError(f"{output.uri}/{file.name}: not the records of decisions: {problem}")


def find_record(output: Output, decision_id: DecisionId) -> dict[str, Any] | None:
    """The record of a decision; None if it is not in this log, or was removed. Of several the latest."""
    found: list[dict[str, Any]] = []
    for file in record_files(output, decision_id.day, f"{decision_id.digest}-{decision_id.generation}-"):
        if file.first <= decision_id.item_index <= file.last:
            found += _of_id(read_records(output, file), str(decision_id))
    return max(found, key=lambda record: str(record["at"]), default=None)


def has_policy(output: Output, sha256: str) -> bool:
    """Whether a policy was kept."""
    return output.version(f"{POLICIES}/{sha256}.json") is not None


def read_policy(output: Output, sha256: str) -> Policy | None:
    """A policy that was kept; None if it is not there.

    Raises:
        OutputDamagedError: it is not the one that was written.
    """
    name = f"{POLICIES}/{sha256}.json"
    data = output.read(name)
    if data is None:
        return None
    try:
        values = json.loads(data)
        found = Policy.model_validate({key: value for key, value in values.items() if key != "sha256"})
    except (ValueError, AttributeError) as error:
        raise OutputDamagedError(f"{output.uri}/{name}: not a policy: {error}") from error
    if found.sha256 != sha256:
        raise OutputDamagedError(f"{output.uri}/{name}: its content has another hash: it was changed")
    return found


def _span(records: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """The first and the last item_index."""
    indexes = [record["item_index"] for record in records]
    return min(indexes), max(indexes)


def _of_id(records: Iterable[dict[str, Any]], decision_id: str) -> list[dict[str, Any]]:
    return [record for record in records if record.get("decision_id") == decision_id]
