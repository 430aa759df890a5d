"""What an output tells of its job beside the parts: which it is, whether all items are staged, its retry."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from clipfleet import keys
from clipfleet.contract import Job, read_job
from clipfleet.errors import JobUnreadableError, OutputConflictError, OutputDamagedError
from clipfleet.outputs import Output
from clipfleet.outputs.folder import output_errors

Note = TypeVar("Note", bound=BaseModel)


class Seal(BaseModel):
    """The source has ended: these are all staged files."""

    model_config = ConfigDict(frozen=True)

    items: int
    files: tuple[tuple[int, int], ...]  # (first chunk, chunks) of each, in order


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


def note_seal(output: Output, seal: Seal) -> None:
    """Note that all items are staged. Idempotent."""
    output.replace(keys.SEAL, seal.model_dump_json().encode())


def seal_of(output: Output) -> Seal | None:
    """What `note_seal` noted, or None. Raises `OutputDamagedError`."""
    return _read(output, keys.SEAL, Seal)


def note_generation(output: Output, generation: Generation) -> bool:
    """Note that a retry begins, unless another one notes the same or a later generation just now.

    Returns:
        False if so: then nothing was changed.
    """
    data = generation.model_dump_json().encode()
    version = output.version(keys.GENERATION)
    if version is None:
        return output.create(keys.GENERATION, data)
    if generation_of(output).number > generation.number:
        return False
    with output.scratch() as path:
        with output_errors(path):
            path.write_bytes(data)
        return output.replace_if(path, keys.GENERATION, version)


def generation_of(output: Output) -> Generation:
    """What `note_generation` noted, or generation 0. Raises `OutputDamagedError`."""
    return _read(output, keys.GENERATION, Generation) or Generation()


def _read(output: Output, name: str, kind: type[Note]) -> Note | None:
    data = output.read(name)
    if data is None:
        return None
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        raise OutputDamagedError(f"{output.uri}/{name} is damaged: remove it and try again") from None
