"""Walks a tree of folders in the order of the sorted full paths, yielding while it walks.

What is wanted is a pattern: a list of components, `**` among them. A folder is read once however many ways
the pattern leads into it, so no file comes twice. Held are the names in one folder and in its parents.
"""

from __future__ import annotations

import fnmatch
import heapq
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from clipfleet.errors import SourceError
from clipfleet.sources.batches import in_batches, item_batch
from clipfleet.sources.uris import local_uri, printable

ANY_DEPTH = "**"
_RUN = 65_536  # names that are sorted at a time; beyond this a folder's names are kept packed
_PACK = 1024

Positions = frozenset[int]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Components of a glob below a root. Wildcards match no name that starts with a dot."""

    components: tuple[re.Pattern[str] | None, ...]  # None: any number of folders
    accepts: Callable[[str], bool]  # a further condition on the name of a file

    @classmethod
    def of(cls, components: Sequence[str], accepts: Callable[[str], bool] = lambda name: True) -> Pattern:
        """A pattern from components as a shell knows them."""
        return cls(tuple(None if part == ANY_DEPTH else _component(part) for part in components), accepts)

    def start(self) -> Positions:
        """Where matching stands in the root folder."""
        return self._with_skips({0})

    def descend(self, positions: Positions, name: str, *, is_link: bool) -> Positions:
        """Where matching stands inside a subfolder; empty: nothing in there can match.

        A linked folder is entered where a component names it, never by `**`: links can form circles.
        """
        last = len(self.components) - 1
        inside = set()
        for position in positions:
            component = self.components[position]
            if component is None:
                if not is_link and not name.startswith("."):
                    inside.add(position)
            elif position < last and component.match(name):
                inside.add(position + 1)
        return self._with_skips(inside)

    def matches_file(self, positions: Positions, name: str) -> bool:
        """True if a file of this name in a folder where matching stands at `positions` is wanted."""
        last = len(self.components) - 1
        if last not in positions or not self.accepts(name):
            return False
        component = self.components[last]
        return not name.startswith(".") if component is None else component.match(name) is not None

    def _with_skips(self, positions: set[int]) -> Positions:
        # `**` may stand for no folder at all.
        reached = set(positions)
        for position in sorted(positions):
            while position < len(self.components) - 1 and self.components[position] is None:
                position += 1
                reached.add(position)
        return frozenset(reached)


def walk(root: Path, pattern: Pattern) -> Iterator[str]:
    """Paths relative to `root` of the files that match, sorted.

    A link to a file counts as that file; a link that leads nowhere is yielded too, so that it becomes a
    failed row and does not vanish. Sockets, pipes and devices are left out.

    Raises:
        SourceError: a folder cannot be read; leaving it out would lose its items silently.
    """
    start = pattern.start()
    stack = [("", start, _entries(root, pattern, start))]
    while stack:
        prefix, positions, entries = stack[-1]
        for name in entries:
            if not name.endswith("/"):
                yield prefix + name
                continue
            folder = root / (prefix + name)
            inside = pattern.descend(positions, name[:-1], is_link=folder.is_symlink())
            stack.append((prefix + name, inside, _entries(folder, pattern, inside)))
            break
        else:
            stack.pop()


def walked_batches(root: Path, pattern: Pattern) -> Iterator[pa.RecordBatch]:
    """Item batches of the files below `root`: the id is the relative path, the URI the absolute one."""
    base = f"{root}/".replace("//", "/")
    first_index = 0
    for paths in in_batches(walk(root, pattern)):
        uris = [base + path for path in paths]
        try:
            batch = item_batch(first_index, pa.array(paths, pa.string()), pa.array(uris, pa.string()))
        except UnicodeEncodeError:  # a name that is not UTF-8: rare, so it is only looked for now
            ids = pa.array([printable(path) for path in paths], pa.string())
            batch = item_batch(first_index, ids, pa.array([local_uri(uri) for uri in uris], pa.string()))
        yield batch
        first_index += len(paths)


def _component(text: str) -> re.Pattern[str]:
    # As in a shell: a leading dot must be written out.
    return re.compile(("" if text.startswith(".") else r"(?!\.)") + fnmatch.translate(text))


def _entries(folder: Path, pattern: Pattern, positions: Positions) -> Iterator[str]:
    """Sorted names of what matters in a folder; a slash ends subfolders, which sorts them by full path."""
    try:
        with os.scandir(folder) as entries:
            return _sorted(_wanted(entries, pattern, positions))
    except OSError as error:
        raise SourceError(f"{printable(str(folder))}: cannot be read: {error.strerror}") from error


def _wanted(entries: Iterable[os.DirEntry[str]], pattern: Pattern, positions: Positions) -> Iterator[str]:
    for entry in entries:
        name = entry.name
        if _is_folder(entry):
            if pattern.descend(positions, name, is_link=entry.is_symlink()):
                yield name + "/"
        elif pattern.matches_file(positions, name) and (entry.is_symlink() or entry.is_file()):
            yield name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        if not entry.is_symlink():
            raise
        return False  # a link that leads to itself, or where nobody may look: no reason to refuse the rest


def _sorted(names: Iterator[str]) -> Iterator[str]:
    """Names in order. Ten million of them need a fifth of the memory that a list would take."""
    runs: list[list[str]] = []
    while run := sorted(islice(names, _RUN)):
        if len(run) < _RUN and not runs:
            return iter(run)
        runs.append(["\0".join(run[start : start + _PACK]) for start in range(0, len(run), _PACK)])
    return heapq.merge(*(_unpacked(packs) for packs in runs))


def _unpacked(packs: list[str]) -> Iterator[str]:
    for pack in packs:
        yield from pack.split("\0")
