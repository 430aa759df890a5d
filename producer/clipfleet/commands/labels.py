"""What a user may write as labels: a list on the command line, or a file."""

from __future__ import annotations

import csv
from pathlib import Path

from clipfleet.errors import UsageError

_FILE_SUFFIXES = (".txt", ".csv", ".lst")


def read_labels(text: str) -> list[str]:
    """Labels from a file with one per line, or from a list with commas; blank ones are left out.

    In a list double quotes keep a comma inside a label; in a file every character belongs to the label.

    Raises:
        UsageError: no labels, a list with a quote that is not closed, or a file that cannot be read.
    """
    path = Path(text)
    if _is_file(path) or ("," not in text and path.suffix.lower() in _FILE_SUFFIXES):
        names = _lines(path)
    else:
        try:
            rows = csv.reader(
                (line.strip() for line in text.splitlines()), skipinitialspace=True, strict=True
            )
            names = [name for row in rows for name in row]
        except csv.Error:
            raise UsageError(
                f'--labels: the double quotes in {text!r} make no names: write "a, b",c or give a file'
            ) from None
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UsageError(f"--labels {text!r} holds no label: give names separated by commas, or a file")
    return names


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no file can have so long a name
        return False


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"--labels {path}: not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"--labels {path}: {error.strerror}") from None
