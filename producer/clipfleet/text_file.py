"""Reads a small text file that a user named: a job, a label set, labels."""

from __future__ import annotations

from pathlib import Path

from clipfleet.errors import UsageError

_MAX_MEGABYTES = 64  # a device that never ends, or the wrong file; not a million labels


def read_text_file(path: Path) -> str:
    """The text of a file, or of a pipe.

    Raises:
        UsageError: it cannot be read, is too large, or is not UTF-8.
    """
    limit = _MAX_MEGABYTES << 20
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise UsageError(f"{path}: larger than {_MAX_MEGABYTES} MB")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
