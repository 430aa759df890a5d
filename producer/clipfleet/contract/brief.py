"""What a job does in a few words, for lists of jobs. Frozen data, no I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

from clipfleet.contract.jobs import Job, read_job
from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import JobUnreadableError

RELABEL = "relabel"  # instead of the task of a job over stored vectors
_NAMED_LABELS = 2
_LABEL_CHARACTERS = 40
_NAMED_SETS = 3


@dataclass(frozen=True, slots=True)
class JobBrief:
    """Short facts of a job, whose description may hold thousands of labels."""

    task: str
    source: str  # absolute path, pattern or URL
    output: str
    labels: str  # `cat, dog and 28 more; head taste`; empty if the job has neither labels nor heads

    @classmethod
    def of(cls, job: Job) -> Self:
        """The brief of a job."""
        task = job.task.value if job.vectors is None else RELABEL
        return cls(task, job.source.uri, job.output, answers_words(job))

    @classmethod
    def of_json(cls, text: str) -> Self | None:
        """Parse what `to_json` returns; None if another program has written it."""
        try:
            facts = json.loads(text)
            values = [facts[name] for name in cls.__slots__]
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
        return cls(*values) if all(isinstance(value, str) for value in values) else None

    @classmethod
    def of_spec(cls, text: str) -> Self | None:
        """The brief of a job as its JSON; None if this version cannot read that."""
        try:
            return cls.of(read_job(text))
        except JobUnreadableError:
            return None

    def to_json(self) -> str:
        """The JSON that the ledger keeps."""
        return json.dumps(asdict(self))


def answers_words(job: Job) -> str:
    """The labels of a job, then its heads: `cat, dog; heads taste, safety and 2 more`."""
    named = [head.name for head in job.heads[:_NAMED_SETS]]
    more = len(job.heads) - len(named)
    noun = "head" if len(job.heads) == 1 else "heads"
    heads = f"{noun} {', '.join(named)}" + (f" and {more} more" if more else "")
    parts = [labels_words(job.label_sets)] if job.label_sets else []
    return "; ".join([*parts, heads] if named else parts)


def labels_words(label_sets: Sequence[LabelSet]) -> str:
    """`cat, dog and 28 more`; of several sets `kind: cat, dog; place: indoors, outdoors and 3 more`."""
    if len(label_sets) == 1:
        return _set_words(label_sets[0])
    named = [f"{one.name}: {_set_words(one)}" for one in label_sets[:_NAMED_SETS]]
    more = len(label_sets) - len(named)
    return "; ".join(named) + (f" and {more} more" if more else "")


def _set_words(label_set: LabelSet) -> str:
    if label_set.preset is not None:
        return label_set.preset.value
    labels = label_set.labels
    named = labels if len(labels) <= _NAMED_LABELS + 1 else labels[:_NAMED_LABELS]
    words = ", ".join(_cut(label) for label in named)
    return words if named is labels else f"{words} and {len(labels) - len(named):,} more"


def _cut(label: str) -> str:
    return label if len(label) <= _LABEL_CHARACTERS else f"{label[: _LABEL_CHARACTERS - 1]}\u2026"
