"""Checks the folders of images and results, as the current user."""

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
    """Check one root."""
    variable = "CLIPFLEET_OUTPUT_ROOTS" if is_output else "CLIPFLEET_FILE_ROOTS"
    if not _is_folder(root):
        yield problem(f"{root} of {variable} is not a folder", f"create it, mount it, or correct {variable}")
    elif not os.access(root, os.R_OK | os.X_OK):
        yield problem(
            f"{root} of {variable} is not readable for user {os.getuid()}",
            f"chmod o+rx {root} and the folders above it, or run the worker as its owner",
        )
    elif is_output:
        yield from _of_output(root)
    else:
        yield fine(f"{root} is readable")


def _of_output(root: Path) -> Iterator[Finding]:
    probe = root / f".clipfleet-doctor-{uuid.uuid4().hex}"
    linked = probe.with_suffix(".linked")
    try:
        probe.write_bytes(b"probe")
        has_links = _can_link(probe, linked)
    except OSError as error:
        yield problem(
            f"{root} of CLIPFLEET_OUTPUT_ROOTS is not writable: {error.strerror}",
            f"let user {os.getuid()} write there (chown, or remount it read-write)",
        )
        return
    finally:
        for path in (probe, linked):
            with suppress(OSError):
                path.unlink()
    yield fine(f"{root} is writable")
    if not has_links:
        yield warning(
            f"{root} is on a file system without hard links",
            "use another file system, or S3: without links a second worker may replace a part",
        )
    free = shutil.disk_usage(root).free
    if free < _LITTLE_BYTES:
        yield warning(f"{root} has {free >> 20} MiB left", "free space: jobs wait while the disk is full")


def no_folder_findings(is_output: bool) -> Iterator[Finding]:
    """Report roots that are not set: that is allowed, but jobs that need them fail."""
    if is_output:
        yield fine("CLIPFLEET_OUTPUT_ROOTS is empty: results can go to Redis and S3 only")
    else:
        yield fine("CLIPFLEET_FILE_ROOTS is empty: images can come from URLs and S3 only")


def _is_folder(path: Path) -> bool:
    """Whether it is a folder, or may be one below a folder that this user cannot enter."""
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
