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
    """An open file, to be closed by the caller with `close(force=True)`; use it inside `parquet_errors`.

    Raises:
        FileNotFoundError: there is no object of this name.
    """
    with ExitStack() as stack:
        file = pq.ParquetFile(stack.enter_context(output.open(name)))
        stack.pop_all()
    return file


def footer(file: pq.ParquetFile) -> dict[str, str]:
    """What the writer noted in the footer, without Arrow's own schema entry."""
    entries = file.metadata.metadata or {}
    return {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in entries.items()
        if key != b"ARROW:schema"
    }


@contextmanager
def parquet_errors(output: Output, name: str) -> Iterator[None]:
    """Turn what pyarrow raises while reading into an output error.

    `FileNotFoundError` and `MemoryError` pass unchanged.
    """
    try:
        yield
    except (FileNotFoundError, MemoryError):  # the latter is an ArrowException, too
        raise
    except OSError as error:
        # Arrow reports content that it cannot understand as an OSError, too, but without a number.
        if error.errno is None:
            raise damaged(output, name, error) from error
        raise OutputUnavailableError(f"{output.uri}/{name}: {error.strerror}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise damaged(output, name, error) from error


def damaged(output: Output, name: str, error: Exception) -> OutputDamagedError:
    """What is said of an object that holds something else than its name says."""
    problem = (str(error).strip() or type(error).__name__).splitlines()[0]  # Arrow adds where it was
    return OutputDamagedError(f"{output.uri}/{name}: damaged: {problem}")
