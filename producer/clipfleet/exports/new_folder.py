"""The folder of an export, which appears atomically once all files are written, and its counts."""

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

    rows: int  # exported
    left_out: int  # that do not fit the layout
    lack: str = "an embedding"  # what rows that are left out lack
    notes: tuple[str, ...] = field(default=())  # messages about surprising details


class Counted:
    """Passes batches through and counts their rows."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self.rows = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            self.rows += batch.num_rows
            yield batch


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Create a hidden sibling of `folder` to write into; rename it at the end, or remove it on failure.

    Raises:
        UsageError: `folder` is a file, a URL or the current folder, or not empty.
        OutputUnavailableError: a file cannot be written.
    """
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", str(folder)):
        raise UsageError(f"{scheme[1]}://...: an export goes to a local folder: copy it from there")
    with suppress(RuntimeError):  # no such user or home: an ordinary name
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
            # Replaces an empty folder. Fails if another program has filled it in the meantime.
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
