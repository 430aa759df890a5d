"""The folders that images are read from and results are written to, as this very user sees them."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from clipfleet_worker.doctor import Finding, fine, problem, warning

_LITTLE_BYTES = 1 << 30


def folder_findings(root: Path, is_output: bool) -> Iterator[Finding]:
    """One of the roots."""
    variable = "CLIPFLEET_OUTPUT_ROOTS" if is_output else "CLIPFLEET_FILE_ROOTS"
    if not _is_folder(root):
        yield problem(f"{root} of {variable} is no folder here", f"make it, mount it, or correct {variable}")
    elif not os.access(root, os.R_OK | os.X_OK):
        yield problem(
            f"{root} of {variable} may not be read by user {os.getuid()}",
            f"chmod o+rx {root} and the folders above it, or run the worker as its owner",
        )
    elif is_output:
        yield from _of_output(root)
    else:
        yield fine(f"{root} can be read")


def _of_output(root: Path) -> Iterator[Finding]:
    probe = root / f".clipfleet-doctor-{uuid.uuid4().hex}"
    linked = probe.with_suffix(".linked")
    try:
        probe.write_bytes(b"probe")
        has_links = _can_link(probe, linked)
    except OSError as error:
        yield problem(
            f"{root} of CLIPFLEET_OUTPUT_ROOTS cannot be written: {error.strerror}",
            f"let user {os.getuid()} write there (chown, or a mount that is not read-only)",
        )
        return
    finally:
        for path in (probe, linked):
            with suppress(OSError):
                path.unlink()
    yield fine(f"{root} can be written")
    if not has_links:
        yield warning(
            f"{root} is on a file system without hard links",
            "two workers may then write the same part one after the other: use another one, or S3",
        )
    free = shutil.disk_usage(root).free
    if free < _LITTLE_BYTES:
        yield warning(f"{root} has {free >> 20} MiB left", "make room: jobs wait while the disk is full")


def no_folder_findings(is_output: bool) -> Iterator[Finding]:
    """Roots that are not set: allowed, but no job that needs them gets far."""
    if is_output:
        yield fine("CLIPFLEET_OUTPUT_ROOTS is empty: results may go to Redis and S3 only")
    else:
        yield fine("CLIPFLEET_FILE_ROOTS is empty: images may come from URLs and S3 only")


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
