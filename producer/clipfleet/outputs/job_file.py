"""What an output tells of its job beside the parts: which it is, whether all items are staged, its retry."""

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
from clipfleet.ledger import keys
from clipfleet.outputs import Output
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.outputs.scratch import output_errors

Note = TypeVar("Note", bound=BaseModel)


class StagedFiles(BaseModel):
    """Those that the ledger knows, or is told of next; what else is there was left by submits that died."""

    model_config = ConfigDict(frozen=True)

    files: tuple[tuple[int, int], ...] = ()  # (first chunk, chunks) of each, in order
    items: int = 0
    is_sealed: bool = False  # the source has ended: there will be no more
    source_sum: str = ""  # of a sealed one, see `submission.Contents`; older versions noted none


class Generation(BaseModel):
    """The retry that was begun last."""

    model_config = ConfigDict(frozen=True)

    number: int = 0
    codes: tuple[str, ...] = ()  # error codes of the rows that it runs again; empty: all


def job_of(output: Output) -> Job | None:
    """The job whose output this is, or None.

    Raises:
        OutputConflictError: there is a job file that cannot be read.
    """
    data = output.read(keys.JOB_FILE)
    if data is None:
        return None
    try:
        return read_job(data)
    except JobUnreadableError as error:
        raise OutputConflictError(
            f"{output.uri}/{keys.JOB_FILE}: {error}; remove that file, or choose another --output"
        ) from None


class StagedNote:
    """What a submit notes of its staged files, before it tells the ledger of them."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._before = staged_files(output)

    @property
    def is_the_last(self) -> bool:
        """Whether nobody has noted anything since this one was made, or wrote."""
        return staged_files(self._output) == self._before

    def write(
        self,
        files: tuple[tuple[int, int], ...],
        items: int,
        *,
        is_sealed: bool = False,
        source_sum: str = "",
    ) -> bool:
        """Note all files so far; False, and nothing is changed, if another submit has noted something."""
        version = self._output.version(keys.STAGED_FILES)  # before it is read: what comes after is noticed
        now = StagedFiles(files=files, items=items, is_sealed=is_sealed, source_sum=source_sum)
        if not self.is_the_last:
            return False
        before, self._before = self._before, now
        if put_note(self._output, keys.STAGED_FILES, now, version):
            return True
        if staged_files(self._output) == before:
            raise _refused(self._output, keys.STAGED_FILES)
        return False


def staged_files(output: Output) -> StagedFiles:
    """What a `StagedNote` wrote last, or no files. Raises `OutputDamagedError`."""
    way_out = "submit the job anew into another --output"
    return read_note(output, keys.STAGED_FILES, StagedFiles, way_out) or StagedFiles()


def note_generation(output: Output, generation: Generation) -> bool:
    """Note that a retry begins, unless another one notes the same or a later generation just now.

    Returns:
        False if so: then nothing was changed.
    """
    version = output.version(keys.GENERATION)
    before = generation_of(output)
    if before.number > generation.number:
        return False
    if put_note(output, keys.GENERATION, generation, version):
        return True
    if generation_of(output) == before:
        raise _refused(output, keys.GENERATION)
    return False


def generation_of(output: Output) -> Generation:
    """What `note_generation` noted, or generation 0. Raises `OutputDamagedError`."""
    return read_note(output, keys.GENERATION, Generation, "remove it and try again") or Generation()


def put_note(output: Output, name: str, note: BaseModel, version: str | None) -> bool:
    """Write a note over the one of this version (None: there must be none); False if it is another by now."""
    return put_if(output, name, note.model_dump_json().encode(), version)


def put_if(
    output: Output, name: str, data: bytes, version: str | None, *, confirm: Confirm = unconditionally
) -> bool:
    """Likewise for bytes. For `confirm` see `Output`."""
    with output.scratch() as path:
        with output_errors(path):
            path.write_bytes(data)
        return put_file_if(output, path, name, version, confirm=confirm)


def put_file_if(
    output: Output, scratch: Path, name: str, version: str | None, *, confirm: Confirm = unconditionally
) -> bool:
    """Likewise for a finished scratch file of the output."""
    if version is None:
        return output.publish(scratch, name, confirm=confirm)
    return output.replace_if(scratch, name, version, confirm=confirm)


def _refused(output: Output, name: str) -> OutputUnavailableError:
    return OutputUnavailableError(
        f"{output.uri}/{name}: was not written, although no other writer interfered"
    )


def read_note(output: Output, name: str, kind: type[Note], way_out: str) -> Note | None:
    """What `put_note` wrote, or None. Raises `OutputDamagedError`, which names the way out."""
    data = output.read(name)
    if data is None:
        return None
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        raise OutputDamagedError(f"{output.uri}/{name} is damaged: {way_out}") from None
