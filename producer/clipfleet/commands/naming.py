"""Which job a user means: a job id, `last`, or the output of a job."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from clipfleet.contract.jobs import LAST
from clipfleet.errors import JobConflictError, JobNotFoundError, UsageError
from clipfleet.settings import Settings, checked
from clipfleet.wording import counted

if TYPE_CHECKING:
    from clipfleet.client import Client, JobHandle

_UNITS = (("day", 86_400), ("hour", 3600), ("minute", 60))


def find_job(client: Client, name: str) -> JobHandle:
    """Return the job of a name: `last`, else a job id, else a folder of this name.

    Raises:
        JobNotFoundError: no such job in Redis; the message names the way out.
        JobConflictError: the job in Redis is not the one of the output.
    """
    found = job_or_output(client, name)
    if not isinstance(found, str):
        return found
    from clipfleet.outputs import open_output
    from clipfleet.outputs.job_file import job_of
    from clipfleet.store.place import no_job_of

    output = open_output(found)
    job = job_of(output)
    if job is None:
        raise no_job_of(output)
    quoted = shlex.quote(name)
    try:
        known = client.job(job.job_id)
    except JobNotFoundError:
        raise JobNotFoundError(
            f"{output.uri}: Redis no longer knows its job {job.job_id}; read its rows with "
            f"`clipfleet results {quoted}`, or restore it with `clipfleet rebuild {quoted}`"
        ) from None
    if not known.job.is_same(job):
        raise JobConflictError(
            f"{output.uri}: its job {job.job_id} differs from the one of this id in Redis, whose output is "
            f"{known.output}; read its rows with `clipfleet results {quoted}`"
        )
    return known


def restored_job(client: Client, name: str) -> JobHandle:
    """Like `find_job`; a job that Redis has lost is restored from its output."""
    found = job_or_output(client, name)
    if isinstance(found, str):
        return client.rebuild(found)
    found.had_ended = found.status().state.is_final
    return found


def job_or_output(client: Client, name: str) -> JobHandle | str:
    """The job of a name, or the name as that of an output. Raises `JobNotFoundError`."""
    if not name.strip():
        raise UsageError("the name of a job is empty: give a job id, `last` or an output")
    if name == LAST:
        return client.last()
    if "/" in name:
        _require_no_file(name)
        return name
    try:
        return client.job(name)
    except JobNotFoundError:
        if is_folder(name):
            return name
    kept = _duration(checked(Settings).job_ttl_seconds)
    raise JobNotFoundError(
        f"No job {name!r}. Finished jobs are kept for {kept}; older results can be read by their folder: "
        "`clipfleet results FOLDER`"
    )


def is_output(name: str) -> bool:
    """Whether a name is that of a place with rows: it has a slash, or is a folder with them, but not `last`.

    A folder has rows if it is a store, or has results.

    Raises:
        UsageError: it is a file.
    """
    from clipfleet.outputs import objects
    from clipfleet.store.place import STORE_FILE

    if "/" in name:
        _require_no_file(name)
        return True
    if name == LAST or not is_folder(name):
        return False
    path = Path(name)
    if (path / objects.INTERNAL).is_dir() or (path / STORE_FILE).is_file():
        return True
    return any(objects.is_part(str(file.relative_to(path))) for file in path.glob("**/part-*"))


def is_folder(name: str) -> bool:
    """Whether there is a folder of this name; no name is too long to ask."""
    with suppress(OSError):
        return Path(name).is_dir()
    return False


def is_file(name: str) -> bool:
    """Whether there is a file of this name; no name is too long to ask."""
    with suppress(OSError):
        return Path(name).is_file()
    return False


def _require_no_file(name: str) -> None:
    if is_file(name):
        raise UsageError(f"{name} is a file: give the folder of the results, or a job id")


def _duration(seconds: int) -> str:
    """`7 days`, `1 hour` or `90 seconds`."""
    name, size = next((unit for unit in _UNITS if seconds % unit[1] == 0), ("second", 1))
    return counted(seconds // size, name)
