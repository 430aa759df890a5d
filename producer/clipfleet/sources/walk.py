"""Walks folder trees lazily, in the order of the sorted full paths; glob patterns and braces.

A pattern is a list of components, `**` included. A folder is read once even if the pattern matches it in
several ways, so that no file appears twice. Memory is bounded by the names in one folder and its parents.
"""

from __future__ import annotations

import fnmatch
import glob
import heapq
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from clipfleet.contract.jobs import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.sources.batches import in_batches, item_batch
from clipfleet.sources.uris import local_uri, utf8_name

ANY_DEPTH = "**"
_RUN = 65_536  # names sorted at a time; a larger folder is kept packed
_PACK = 1024

Positions = frozenset[int]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Components of a glob below a root. Wildcards do not match a leading dot."""

    components: tuple[re.Pattern[str] | None, ...]  # None: any number of folders
    accepts: Callable[[str], bool]  # further condition on file names

    @classmethod
    def of(cls, components: Sequence[str], accepts: Callable[[str], bool] = lambda name: True) -> Pattern:
        """Build a pattern from shell components."""
        return cls(tuple(None if part == ANY_DEPTH else _component(part) for part in components), accepts)

    def start(self) -> Positions:
        """Match positions in the root folder."""
        return self._with_skips({0})

    def descend(self, positions: Positions, name: str, *, is_link: bool) -> Positions:
        """Match positions inside a subfolder; empty if nothing in it can match.

        A linked folder is entered by a named component, never by `**`: links can form cycles.
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
        """Whether a file of this name matches, in a folder with these positions."""
        last = len(self.components) - 1
        if last not in positions or not self.accepts(name):
            return False
        component = self.components[last]
        return not name.startswith(".") if component is None else component.match(name) is not None

    def _with_skips(self, positions: set[int]) -> Positions:
        # `**` also matches no folder.
        reached = set(positions)
        for position in sorted(positions):
            while position < len(self.components) - 1 and self.components[position] is None:
                position += 1
                reached.add(position)
        return frozenset(reached)


def walk(root: Path, pattern: Pattern) -> Iterator[str]:
    """Yield the paths of matching files, relative to `root` and sorted.

    A link to a file counts as that file; a dangling link is yielded too, so that it becomes a failed row.
    Sockets, pipes and devices are skipped.

    Raises:
        SourceError: a folder cannot be read; skipping it would lose its items silently.
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


def _component(text: str) -> re.Pattern[str]:
    # As in a shell: a leading dot must be explicit.
    return re.compile(("" if text.startswith(".") else r"(?!\.)") + fnmatch.translate(text))


def _entries(folder: Path, pattern: Pattern, positions: Positions) -> Iterator[str]:
    """Sorted names of matching entries; a slash ends subfolders, which sorts by full path."""
    try:
        with os.scandir(folder) as entries:
            return _sorted(_wanted(entries, pattern, positions))
    except OSError as error:
        raise SourceError(f"{utf8_name(str(folder))}: cannot be read: {error.strerror}") from error


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
        return False  # a link cycle, or an inaccessible target: keep the rest


def _sorted(names: Iterator[str]) -> Iterator[str]:
    """Sort names. Ten million need a fifth of the memory of a list."""
    runs: list[list[str]] = []
    while run := sorted(islice(names, _RUN)):
        if len(run) < _RUN and not runs:
            return iter(run)
        runs.append(["\0".join(run[start : start + _PACK]) for start in range(0, len(run), _PACK)])
    return heapq.merge(*((name for pack in packs for name in pack.split("\0")) for packs in runs))


def has_wildcards(text: str) -> bool:
    """Whether text contains a wildcard."""
    return any(character in text for character in "*?[")


IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip


def is_image_name(name: str) -> bool:
    """Whether a file name has an image extension."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


class WalkedSource:
    """See `clipfleet.sources.Source`: the files below a folder that match a pattern.

    The id of an item is its path below that folder. A name that is not UTF-8 becomes a percent-encoded `file://`
    URI and id.
    """

    def __init__(self, kind: str, name: Path, root: Path, pattern: Pattern, nothing: str) -> None:
        self._root, self._pattern = root, pattern
        self._nothing = f"{utf8_name(str(name))}: {nothing}"
        self.description = SourceDescription(kind=kind, uri=local_uri(str(name)))

    def batches(self) -> Iterator[pa.RecordBatch]:
        base = f"{self._root}/".replace("//", "/")
        first_index = 0
        for paths in in_batches(walk(self._root, self._pattern)):
            uris = [base + path for path in paths]
            try:
                batch = item_batch(first_index, pa.array(paths, pa.string()), pa.array(uris, pa.string()))
            except UnicodeEncodeError:  # a name that is not UTF-8: rare, so not checked before
                ids = pa.array([utf8_name(path) for path in paths], pa.string())
                batch = item_batch(first_index, ids, pa.array([local_uri(uri) for uri in uris], pa.string()))
            yield batch
            first_index += len(paths)
        if first_index == 0:
            raise SourceError(self._nothing)


def folder_source(folder: Path) -> WalkedSource:
    """All images below a folder, by file extension; the folder itself may be a link."""
    nothing = (
        "no images found; looked in all folders below it for names that end in "
        f"{' '.join(IMAGE_EXTENSIONS)} (hidden files and folders and linked folders are skipped)"
    )
    return WalkedSource("folder", folder, folder, Pattern.of([ANY_DEPTH], is_image_name), nothing)


def pattern_source(name: Path) -> WalkedSource:
    """The files of an absolute pattern."""
    root, pattern = _root_and_pattern(name)
    return WalkedSource("glob", name, root, pattern, "no file matches this pattern")


def file_source(path: Path) -> WalkedSource:
    """The source with this file as its one item; wildcards in its path are literal."""
    pattern = Pattern.of([glob.escape(path.name)])
    return WalkedSource("glob", path, path.parent, pattern, "no file matches this pattern")


def matching_files(name: Path) -> Iterator[Path]:
    """The files that match an absolute pattern, sorted."""
    root, pattern = _root_and_pattern(name)
    return (root / found for found in walk(root, pattern))


def _root_and_pattern(name: Path) -> tuple[Path, Pattern]:
    """Split a pattern into its existing leading folder, whose name may contain wildcards, and the rest."""
    parts, fixed = name.parts, len(name.parts) - 1
    for number, part in enumerate(parts):
        if has_wildcards(part) and not Path(*parts[: number + 1]).exists():
            fixed = number
            break
    return Path(*parts[:fixed]), Pattern.of(parts[fixed:])


_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(text: str) -> Iterator[str]:
    """Expand braces as a shell does; numbers keep leading zeros.

    Braces with neither a comma nor a number range are literal.
    """
    for brace in _BRACE.finditer(text):
        choices = _choices(brace[1])
        if choices is not None:
            for choice in choices:
                for rest in expand_braces(text[brace.end() :]):
                    yield f"{text[: brace.start()]}{choice}{rest}"
            return
    yield text


def _choices(inside: str) -> Iterator[str] | None:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return iter(inside.split(",")) if "," in inside else None
    first, last = int(numbers[1]), int(numbers[2])
    is_padded = any(text.startswith("0") and len(text) > 1 for text in numbers.groups())
    width = max(map(len, numbers.groups())) if is_padded else 0
    steps = range(first, last + 1) if first <= last else range(first, last - 1, -1)
    return (str(number).zfill(width) for number in steps)
