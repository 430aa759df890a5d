"""Files of an output beside the parts: the job, its staged files, its current retry."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from clipfleet.contract.jobs import Job, read_job
from clipfleet.errors import (
    JobUnreadableError,
    OutputConflictError,
    OutputDamagedError,
    OutputUnavailableError,
)
from clipfleet.outputs import Output, objects
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.outputs.scratch import output_errors

Note = TypeVar("Note", bound=BaseModel)


class StagedFiles(BaseModel):
    """Staged files that the ledger knows or learns next; others are leftovers of killed submits."""

    model_config = ConfigDict(frozen=True)

    files: tuple[tuple[int, int], ...] = ()  # (first chunk, chunks) of each, in order
    items: int = 0
    is_sealed: bool = False  # the list is final
    source_sum: str = ""  # of a sealed job, see `contents.py`; empty from older versions


class Generation(BaseModel):
    """The most recent retry."""

    model_config = ConfigDict(frozen=True)

    number: int = 0
    codes: tuple[str, ...] = ()  # error codes that it retries; empty: all


def job_of(output: Output) -> Job | None:
    """Return the job of an output, or None.

    Raises:
        OutputConflictError: the job file is unreadable.
    """
    data = output.read(objects.JOB_FILE)
    if data is None:
        return None
    try:
        return read_job(data)
    except JobUnreadableError as error:
        raise OutputConflictError(
            f"{output.uri}/{objects.JOB_FILE}: {error}; remove that file, or choose another `output=`"
        ) from None


class StagedNote:
    """Writes the list of staged files, ahead of the ledger."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._before = staged_files(output)

    @property
    def is_the_last(self) -> bool:
        """Whether no other submit has written the list since."""
        return staged_files(self._output) == self._before

    def write(
        self,
        files: tuple[tuple[int, int], ...],
        items: int,
        *,
        is_sealed: bool = False,
        source_sum: str = "",
    ) -> bool:
        """Write all files so far; return False and change nothing if another submit has written."""
        version = self._output.version(objects.STAGED_FILES)  # read first, so that later changes are detected
        now = StagedFiles(files=files, items=items, is_sealed=is_sealed, source_sum=source_sum)
        if not self.is_the_last:
            return False
        before, self._before = self._before, now
        if put_note(self._output, objects.STAGED_FILES, now, version):
            return True
        if staged_files(self._output) == before:
            raise _refused(self._output, objects.STAGED_FILES)
        return False


def staged_files(output: Output) -> StagedFiles:
    """Read the list of staged files, by default empty. Raises `OutputDamagedError`."""
    way_out = "submit the job again into another `output=`"
    return read_note(output, objects.STAGED_FILES, StagedFiles, way_out) or StagedFiles()


def note_generation(output: Output, generation: Generation) -> bool:
    """Record the start of a retry, unless another one records the same or a later generation.

    Returns:
        False if so; nothing was changed.
    """
    version = output.version(objects.GENERATION)
    before = generation_of(output)
    if before.number > generation.number:
        return False
    if put_note(output, objects.GENERATION, generation, version):
        return True
    if generation_of(output) == before:
        raise _refused(output, objects.GENERATION)
    return False


def generation_of(output: Output) -> Generation:
    """Read the recorded retry, by default generation 0. Raises `OutputDamagedError`."""
    return read_note(output, objects.GENERATION, Generation, "remove it and try again") or Generation()


def put_note(output: Output, name: str, note: BaseModel, version: str | None) -> bool:
    """Write a note if its version is still this one (None: it must not exist); else return False."""
    return put_if(output, name, note.model_dump_json().encode(), version)


def put_if(
    output: Output, name: str, data: bytes, version: str | None, *, confirm: Confirm = unconditionally
) -> bool:
    """Like `put_note`, for bytes. For `confirm` see `Output`."""
    with output.scratch() as path:
        with output_errors(path):
            path.write_bytes(data)
        return put_file_if(output, path, name, version, confirm=confirm)


def put_file_if(
    output: Output, scratch: Path, name: str, version: str | None, *, confirm: Confirm = unconditionally
) -> bool:
    """Like `put_note`, for a finished scratch file of the output."""
    if version is None:
        return output.publish(scratch, name, confirm=confirm)
    return output.replace_if(scratch, name, version, confirm=confirm)


def _refused(output: Output, name: str) -> OutputUnavailableError:
    return OutputUnavailableError(
        f"{output.uri}/{name}: was not written, although no other writer interfered"
    )


def read_note(output: Output, name: str, kind: type[Note], way_out: str) -> Note | None:
    """Read what `put_note` wrote, or None. Raises `OutputDamagedError` with the way out."""
    data = output.read(name)
    if data is None:
        return None
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        raise OutputDamagedError(f"{output.uri}/{name} is damaged: {way_out}") from None
