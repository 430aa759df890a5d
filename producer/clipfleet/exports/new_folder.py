"""Where an export goes, a folder that becomes visible when all its files are written, and its counts."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from clipfleet.errors import OutputUnavailableError, UsageError
from clipfleet.sources.uris import utf8_name


@dataclass(frozen=True, slots=True)
class ExportCounts:
    """Rows of one export."""

    rows: int  # that are in it
    left_out: int  # that its layout has no place for
    notes: tuple[str, ...] = field(default=())  # lines for people, where something is not as they may expect


class Counted:
    """Batches on their way, and how many rows have passed."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self.rows = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            self.rows += batch.num_rows
            yield batch


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder` to write into; it gets that name at the end, or is removed.

    Raises:
        UsageError: `folder` is a file, a URL or the current folder, or holds something.
        OutputUnavailableError: something cannot be written.
    """
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", str(folder)):
        raise UsageError(f"{scheme[1]}://...: an export goes to a local folder: copy it from there")
    with suppress(RuntimeError):  # no such user, or no home: then it is an ordinary name
        folder = folder.expanduser()
    folder = folder.absolute()
    _require_free(folder)
    scratch = folder.with_name(f".{folder.name[:200]}.{uuid.uuid4().hex[:12]}")
    try:
        with _folder_errors(folder):
            scratch.mkdir(parents=True)
            yield scratch
            _sync(scratch)
            _require_free(folder)
            # Over an empty folder, too. One that another program has filled meanwhile is left as it is.
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _require_free(folder: Path) -> None:
    name = utf8_name(str(folder))
    with _folder_errors(folder):
        if not folder.exists() and not folder.is_symlink():
            return
        if not folder.is_dir() or folder.is_symlink():
            raise UsageError(f"{name} is not a folder: choose another one")
        if any(folder.iterdir()):
            raise UsageError(f"{name} is not empty: choose another folder, or remove what is there")
        if folder.samefile(Path.cwd()):
            raise UsageError(f"{name} is the current folder: name a new one below it")


@contextmanager
def _folder_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise OutputUnavailableError(f"{utf8_name(str(where))}: {error.strerror or error}") from error


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
