"""What Lance says about a place, in words of those who have it."""

from __future__ import annotations

import pytest

from clipfleet.errors import (
    OutputDamagedError,
    OutputTooNewError,
    OutputUnavailableError,
    OutputUnreachableError,
)
from clipfleet.store.place_errors import lance_errors

URI = "/photos/1f.lance"
SOURCE = "/home/runner/work/lance/lance/rust/lance-io/src/object_store.rs:1019:34"


@pytest.mark.parametrize(
    ("said", "error_class", "words"),
    [
        (
            f'LanceError(IO): Read-only file system (os error 30) at path "{URI}/_transactions/.tmpvN8it6", '
            f"{SOURCE}\nmore",
            OutputUnreachableError, "the file system is read-only; nothing was changed",
        ),
        (
            f"LanceError(IO): No space left on device (os error 28), {SOURCE}",
            OutputUnavailableError, "the disk is full; nothing was changed",
        ),
        (
            f"LanceError(IO): Permission denied (os error 13), {SOURCE}",
            OutputUnreachableError, "Permission denied (os error 13)",
        ),
        (f"LanceError(IO): connection reset, {SOURCE}", OutputUnavailableError, "connection reset"),
    ],
)  # fmt: skip
def test_a_user_reads_nothing_of_the_inside_of_lance(
    said: str, error_class: type[OutputUnavailableError], words: str
) -> None:
    with pytest.raises(OutputUnavailableError) as caught, lance_errors(URI):
        raise OSError(said)

    assert (type(caught.value), str(caught.value)) == (error_class, f"{URI}: {words}")


def test_damage_and_newer_formats_are_errors_of_their_own() -> None:
    with pytest.raises(OutputDamagedError, match=f"^{URI} is damaged: Object not found$"), lance_errors(URI):
        raise OSError("LanceError(IO): Object not found")
    with pytest.raises(OutputTooNewError, match="pip install --upgrade"), lance_errors(URI):
        raise ValueError("This feature needs you to upgrade Lance")


def test_what_is_no_error_of_a_place_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match=r"^a mistake$"), lance_errors(URI):
        raise ValueError("a mistake")
    with pytest.raises(FileNotFoundError), lance_errors(URI):
        raise FileNotFoundError(URI)
