"""The files that match a pattern (`*`, `?`, `[...]` and `**` for any number of folders), and single files.

As in a shell, wildcards match no name that starts with a dot and `**` enters no linked folder; every file
counts, whatever its extension, because the pattern says what is meant. The id of an item is its path below
the pattern's fixed prefix.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from clipfleet.contract import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.sources.uris import local_uri, printable
from clipfleet.sources.walk import Pattern, walk, walked_batches


def has_wildcards(text: str) -> bool:
    """True if the text holds a character that means something in a pattern."""
    return any(character in text for character in "*?[")


class GlobSource:
    """See `clipfleet.sources.Source`."""

    def __init__(self, name: Path, prefix: Path, components: Sequence[str]) -> None:
        self._name = printable(str(name))
        self._prefix = prefix
        self._pattern = Pattern.of(components)
        self.description = SourceDescription(kind="glob", uri=local_uri(str(name)))

    @classmethod
    def of_pattern(cls, pattern: Path) -> GlobSource:
        """The source of an absolute pattern."""
        fixed = _fixed_components(pattern)
        return cls(pattern, Path(*pattern.parts[:fixed]), pattern.parts[fixed:])

    @classmethod
    def of_one_file(cls, path: Path) -> GlobSource:
        """The source whose one item is this file; its path may hold wildcards, they mean nothing."""
        return cls(path, path.parent, [glob.escape(path.name)])

    def batches(self) -> Iterator[pa.RecordBatch]:
        is_empty = True
        for batch in walked_batches(self._prefix, self._pattern):
            is_empty = False
            yield batch
        if is_empty:
            raise SourceError(f"{self._name}: no file matches this pattern")


def matching_files(pattern: Path) -> Iterator[Path]:
    """The files that an absolute pattern means, sorted."""
    fixed = _fixed_components(pattern)
    prefix = Path(*pattern.parts[:fixed])
    return (prefix / name for name in walk(prefix, Pattern.of(pattern.parts[fixed:])))


def _fixed_components(pattern: Path) -> int:
    """Number of leading components that name one folder; a folder may have wildcards in its own name."""
    parts = pattern.parts
    for number, part in enumerate(parts):
        if has_wildcards(part) and not Path(*parts[: number + 1]).exists():
            return number
    return len(parts) - 1
