"""Where a store is, and what it is: `STORE/store.json`, which says which dataset is the current one.

STORE/store.json             replaced conditionally, only where it is as it was read
STORE/<fingerprint>.lance    the vectors of one model
STORE/_jobs/<job id>/        an ordinary output, until its finish has committed it
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from clipfleet.contract.jobs import MAX_DIMENSION, DecodeRoute, Exif, Precision
from clipfleet.contract.label_sets import Fingerprint, FrozenModel
from clipfleet.contract.stores import StoreId
from clipfleet.errors import (
    JobNotFoundError,
    OutputDamagedError,
    OutputTooNewError,
    OutputUnreachableError,
    UsageError,
    first_problem,
)
from clipfleet.outputs import Output, open_output, output_uri
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.outputs.job_file import put_if
from clipfleet.outputs.scratch import output_errors
from clipfleet.s3.client import SCHEME, default_client, list_folders, split_s3_uri
from clipfleet.s3.failures import S3Problem, explain, s3_errors

STORE_FILE = "store.json"
JOBS_FOLDER = "_jobs"
STORE_VERSION = 1  # of `store.json` and of the columns of its datasets
DATASET_NAME = re.compile(r"[0-9a-f]{16}\.lance")  # of the vectors of a model
_WAY_OUT = "restore it from a backup, or fill another folder or prefix"
_TRIES = 20  # of a change that others overtake


class EmbeddedBy(FrozenModel):
    """What makes the vectors of a dataset: options of the jobs that fill it."""

    model: str
    precision: Precision = Precision.AUTO
    decode: DecodeRoute = DecodeRoute.FAST
    exif: Exif = Exif.IGNORE
    fingerprint: Fingerprint | None = None  # None: no job has finished yet
    dimension: Annotated[int, Field(ge=1, le=MAX_DIMENSION)] | None = None  # likewise


class Migration(FrozenModel):
    """Another model on its way in."""

    migration_id: StoreId
    to: EmbeddedBy
    began_at: datetime


class StoreFile(FrozenModel):
    """`store.json`."""

    schema_version: int = STORE_VERSION
    store_id: StoreId
    created_at: datetime
    current: EmbeddedBy
    migration: Migration | None = None


class StorePlace:
    """A store in a folder or in S3."""

    def __init__(self, output: Output) -> None:
        """Nothing is read yet."""
        self._output = output
        self.uri = output.uri

    def dataset_uri(self, fingerprint: str) -> str:
        """Where the vectors of a model are."""
        return f"{self.uri}/{fingerprint}.lance"

    def dataset_is_gone(self, fingerprint: str) -> OutputDamagedError:
        """The error where `store.json` names vectors that are not there: nothing may take their place."""
        return OutputDamagedError(
            f"{self.dataset_uri(fingerprint)} is gone, though {self.uri}/{STORE_FILE} names it: bring it "
            f"back, or remove all of {self.uri} to begin anew"
        )

    def job_output(self, job_id: str) -> str:
        """The output of a job that fills the store."""
        return f"{self.uri}/{JOBS_FOLDER}/{job_id}"

    def read(self) -> StoreFile:
        """What the store is.

        Raises:
            UsageError: there is no store, or none can be there.
            OutputTooNewError: a newer version wrote it.
            OutputDamagedError: `store.json` is not what this version writes.
            OutputUnavailableError: it cannot be read now.
        """
        found = self.look()
        if found is None:
            raise UsageError(f"{self.uri}: there is no store; `clipfleet backfill` makes one")
        return found

    def look(self) -> StoreFile | None:
        """See `read`, for a place that a user has named; None if there is no store yet."""
        try:
            return self.read_if_there()
        except OutputUnreachableError as error:
            cause = error.__cause__
            if isinstance(cause, NotADirectoryError):
                paths = (Path(self.uri), *Path(self.uri).parents)
                file = next((path for path in paths if path.is_file()), self.uri)
                raise UsageError(f"{file} is a file: name a folder for the store") from error
            if isinstance(cause, Exception) and explain(cause).problem is S3Problem.NO_BUCKET:
                raise UsageError(str(error)) from error
            raise

    def read_if_there(self) -> StoreFile | None:
        """See `read`; None if there is no store, nor vectors of one."""
        data = self._output.read(STORE_FILE)
        if data is not None:
            return _parsed(data, f"{self.uri}/{STORE_FILE}")
        for name in _folders(self.uri):
            if DATASET_NAME.fullmatch(name):
                raise OutputDamagedError(
                    f"{self.uri}/{STORE_FILE} is gone, though {name} is there: bring it back, or fill "
                    "another folder or prefix"
                )
        return None

    def create(self, embedded_by: EmbeddedBy) -> StoreFile:
        """Make a store, or return the one that another program has made meanwhile."""
        made = StoreFile(store_id=secrets.token_hex(16), created_at=datetime.now(UTC), current=embedded_by)
        self._output.create(STORE_FILE, _written(made))
        return self.read()

    def change(
        self, change: Callable[[StoreFile], StoreFile], *, confirm: Confirm = unconditionally
    ) -> StoreFile:
        """Replace `store.json` by what `change` makes of it; called again where another program was faster.

        Args:
            change: may raise, which ends the call; one that returns its argument changes nothing.
            confirm: see `clipfleet.outputs.Output`.
        """
        for _ in range(_TRIES):
            version = self._output.version(STORE_FILE)  # before it is read
            before = self.read()
            after = change(before)
            if after == before:
                return before
            if put_if(self._output, STORE_FILE, _written(after), version, confirm=confirm):
                return after
        raise OutputUnreachableError(f"{self.uri}/{STORE_FILE}: other programs change it all the time")


def store_place(text: str) -> StorePlace:
    """The place that a user names: a folder or `s3://BUCKET/PREFIX`. Nothing is read."""
    return StorePlace(open_output(output_uri(text)))


def no_job_of(output: Output) -> JobNotFoundError:
    """The error where the output of a job is asked for, and is none: it may be a store."""
    if output.version(STORE_FILE) is None:
        return JobNotFoundError(f"{output.uri}: no job has this output")
    return JobNotFoundError(
        f"{output.uri} is a store, not the output of a job: `clipfleet store log` lists the jobs that have "
        "filled it, `clipfleet store info` those that have not ended, and `clipfleet backfill` tries failed "
        "items again"
    )


def _folders(uri: str) -> Iterator[str]:
    """Names of the folders directly in a place; none if it is not there."""
    if uri.startswith(SCHEME):
        bucket, key = split_s3_uri(uri)
        with s3_errors(uri):
            yield from list_folders(default_client(), bucket, f"{key}/" if key else "")
        return
    with output_errors(Path(uri)):
        try:
            with os.scandir(uri) as entries:
                yield from (entry.name for entry in entries if entry.is_dir())
        except FileNotFoundError:
            return


def _written(store: StoreFile) -> bytes:
    return store.model_dump_json(indent=1).encode()


def _parsed(data: bytes, where: str) -> StoreFile:
    try:
        values: Any = json.loads(data)
        version = values["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise OutputDamagedError(f"{where} is not the description of a store: {_WAY_OUT}") from None
    if version != STORE_VERSION:
        raise OutputTooNewError(
            f"{where} has version {version}, this clipfleet reads {STORE_VERSION}: update clipfleet"
        )
    try:
        return StoreFile.model_validate(values)
    except ValidationError as error:
        raise OutputDamagedError(f"{where} is damaged: {first_problem(error)}; {_WAY_OUT}") from None
