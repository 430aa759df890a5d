"""Parquet files among the objects of an output: open them, read their footers, name what is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet.errors import OutputDamagedError, OutputUnavailableError

if TYPE_CHECKING:
    from clipfleet.outputs import Output


def open_parquet(output: Output, name: str) -> pq.ParquetFile:
    """Open a file inside `parquet_errors`; the caller closes it with `close(force=True)`.

    Raises:
        FileNotFoundError: no such object.
    """
    with ExitStack() as stack:
        file = pq.ParquetFile(stack.enter_context(output.open(name)))
        stack.pop_all()
    return file


def footer(file: pq.ParquetFile) -> dict[str, str]:
    """Footer metadata of the writer, without Arrow's schema entry."""
    entries = file.metadata.metadata or {}
    return {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in entries.items()
        if key != b"ARROW:schema"
    }


@contextmanager
def parquet_errors(output: Output, name: str) -> Iterator[None]:
    """Turn read errors of pyarrow into output errors, except `FileNotFoundError` and `MemoryError`."""
    try:
        yield
    except (FileNotFoundError, MemoryError):  # the latter is also an ArrowException
        raise
    except OSError as error:
        # Arrow also raises OSError for malformed content, but without errno.
        if error.errno is None:
            raise damaged(output, name, error) from error
        raise OutputUnavailableError(f"{output.uri}/{name}: {error.strerror}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise damaged(output, name, error) from error


def damaged(output: Output, name: str, error: Exception) -> OutputDamagedError:
    """Build the error for an object with unexpected content."""
    problem = (str(error).strip() or type(error).__name__).splitlines()[
        0
    ]  # Arrow appends its source location
    return OutputDamagedError(f"{output.uri}/{name}: damaged: {problem}")
