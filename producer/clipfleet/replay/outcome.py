"""What a replay has found, and the file of the items that change side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

from clipfleet.contract.policies import DecisionStatus
from clipfleet.errors import UsageError
from clipfleet.replay.comparing import Pair
from clipfleet.results.kinds import ResultFormat

_FORMATS = {f".{one}": one for one in ResultFormat if one is not ResultFormat.TABLE}


@dataclass(frozen=True, slots=True)
class Replayed:
    """How another policy decides on the items of a job or a store.

    Both sides are decided from the same vectors or scores.
    """

    source: str  # URI of the job, output or store
    old_policy: Mapping[str, str]  # name, version, sha256
    new_policy: Mapping[str, str]
    from_scores: bool  # both sides are decided from stored scores; else from stored vectors
    counts: Mapping[Pair, int]  # items by their old and their new decision
    failed: Mapping[str, int]  # items without a vector or score, which stay undecided, by error code
    examples: Mapping[str, str]  # error code -> id of such an item
    decided_otherwise: int  # items whose recorded decision is not the old one: their vectors are rounded
    shown: Sequence[dict[str, Any]]  # the first items that change side, most severe changes first
    outputs: tuple[str, str] | None  # of the rows that the old and the new policy have decided, if kept
    changes_file: str | None

    @property
    def items(self) -> int:
        """Number of items."""
        return sum(self.counts.values())

    @property
    def changed(self) -> int:
        """Number of items that change side."""
        return sum(count for (old, new), count in self.counts.items() if old != new)

    def document(self) -> dict[str, Any]:
        """All of it as an object of JSON types."""
        statuses = [one.value for one in DecisionStatus]
        return {
            "source": self.source,
            "old_policy": {**self.old_policy},
            "new_policy": {**self.new_policy},
            "decided_from": "scores" if self.from_scores else "vectors",
            "items": self.items,
            "changed": self.changed,
            "counts": {old: {new: self.counts.get((old, new), 0) for new in statuses} for old in statuses},
            "without_vector": {**self.failed},
            "decided_otherwise": self.decided_otherwise,
            "changes": [*self.shown],
            "changes_file": self.changes_file,
            "outputs": self.outputs and dict(zip(("old", "new"), self.outputs, strict=True)),
        }


def changes_format(path: Path) -> ResultFormat:
    """The format of the file of the changes.

    Raises:
        UsageError: its name has another suffix, or its folder does not exist.
    """
    found = _FORMATS.get(path.suffix.lower())
    if found is None:
        raise UsageError(f"{path}: changes are written as .jsonl, .csv or .parquet: name such a file")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}: make it first")
    return found


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write; it takes the place of an older one once it is whole.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            scratch = Path(file.name)
            try:
                yield file  # type: ignore[misc]  # typeshed: a wrapper of a BinaryIO
                file.flush()
                scratch.chmod(0o644)
                scratch.replace(path)
            except BaseException:
                scratch.unlink()
                raise
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
