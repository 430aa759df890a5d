"""Errors of Lance as those of the place where a dataset is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from clipfleet.errors import (
    OutputDamagedError,
    OutputTooNewError,
    OutputUnavailableError,
    OutputUnreachableError,
)

# How an error of a place begins, of whatever type it is.
_OF_PLACES = ("LanceError(IO)", "Dataset at path")
# What says nothing to a user: the layer that met an error, and where that stands in the source of Lance.
_OF_LANCE = re.compile(r"^LanceError\(\w+\): |, /\S+\.rs:\d+:\d+$")


@contextmanager
def lance_errors(uri: str) -> Iterator[None]:
    """Report errors of Lance as those of the place where the dataset is.

    Args:
        uri: of the dataset.

    Raises:
        FileNotFoundError: as it is: what is missing, the caller knows.
        OutputTooNewError: a newer Lance wrote it.
        OutputDamagedError: files of it are missing or damaged.
        OutputUnreachableError: it must not be read or written.
        OutputUnavailableError: any other fault of the place; a full disk is named.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        text = str(error).splitlines()[0]
        if "upgrade Lance" in text:
            raise OutputTooNewError(
                f"{uri}: a newer version of Lance wrote it: `pip install --upgrade 'clipfleet[store]'`"
            ) from error
        # Arrow's through batches and tables, others where a dataset is opened.
        if not isinstance(error, (OSError, pa.ArrowInvalid)) and not text.startswith(_OF_PLACES):
            raise
        raise _of_a_place(uri, _OF_LANCE.sub("", text)) from error


def _of_a_place(uri: str, text: str) -> OutputUnavailableError:
    low = text.lower()
    if "no space left" in low or "disk quota" in low:
        return OutputUnavailableError(f"{uri}: the disk is full; nothing was changed")
    if "read-only" in low:
        return OutputUnreachableError(f"{uri}: the file system is read-only; nothing was changed")
    if "permission denied" in low or "access denied" in low:
        return OutputUnreachableError(f"{uri}: {text}")
    if "not found" in low or "corrupt" in low or "invalid" in low:
        return OutputDamagedError(f"{uri} is damaged: {text}")
    return OutputUnavailableError(f"{uri}: {text}")
