"""The folders that pictures are read from and results are written to, as this very user sees them."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clipfleet_worker.doctor import Finding, fine, problem, warning

_LITTLE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class FolderCheck:
    """See `Check`: one of the roots."""

    root: Path
    is_output: bool
    name: str = "folders"
    limit_seconds: float = 20.0  # a network share that is away hangs

    def findings(self) -> Iterator[Finding]:
        variable = "CLIPFLEET_OUTPUT_ROOTS" if self.is_output else "CLIPFLEET_FILE_ROOTS"
        if not _is_folder(self.root):
            yield problem(
                f"{self.root} of {variable} is no folder here", f"make it, mount it, or correct {variable}"
            )
        elif not os.access(self.root, os.R_OK | os.X_OK):
            yield problem(
                f"{self.root} of {variable} may not be read by user {os.getuid()}",
                f"chmod o+rx {self.root} and the folders above it, or run the worker as its owner",
            )
        elif self.is_output:
            yield from self._of_output()
        else:
            yield fine(f"{self.root} can be read")

    def _of_output(self) -> Iterator[Finding]:
        probe = self.root / f".clipfleet-doctor-{uuid.uuid4().hex}"
        linked = probe.with_suffix(".linked")
        try:
            probe.write_bytes(b"probe")
            has_links = _can_link(probe, linked)
        except OSError as error:
            yield problem(
                f"{self.root} of CLIPFLEET_OUTPUT_ROOTS cannot be written: {error.strerror}",
                f"let user {os.getuid()} write there (chown, or a mount that is not read-only)",
            )
            return
        finally:
            for path in (probe, linked):
                with suppress(OSError):
                    path.unlink()
        yield fine(f"{self.root} can be written")
        if not has_links:
            yield warning(
                f"{self.root} is on a file system without hard links",
                "two workers may then write the same part one after the other: use another one, or S3",
            )
        free = shutil.disk_usage(self.root).free
        if free < _LITTLE_BYTES:
            yield warning(
                f"{self.root} has {free >> 20} MiB left", "make room: jobs wait while the disk is full"
            )


@dataclass(frozen=True, slots=True)
class NoFolders:
    """See `Check`. Roots that are not set: allowed, but no job that needs them gets far."""

    is_output: bool
    name: str = "folders"
    limit_seconds: float = 1.0

    def findings(self) -> Iterator[Finding]:
        if self.is_output:
            yield fine("CLIPFLEET_OUTPUT_ROOTS is empty: results may go to Redis and S3 only")
        else:
            yield fine("CLIPFLEET_FILE_ROOTS is empty: pictures may come from URLs and S3 only")


def _is_folder(path: Path) -> bool:
    """Also where a folder above it may not be entered: then nobody knows."""
    try:
        return path.is_dir()
    except PermissionError:
        return True


def _can_link(path: Path, linked: Path) -> bool:
    try:
        linked.hardlink_to(path)
    except OSError:
        return False
    return True
