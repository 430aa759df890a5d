"""Where a store is, and what it is: `STORE/store.json`, which says which dataset is the current one.

STORE/store.json             replaced conditionally, only where it is as it was read
STORE/<fingerprint>.lance    the vectors of one model
STORE/_jobs/<job id>/        an ordinary output, until its finish has committed it
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
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

STORE_FILE = "store.json"
JOBS_FOLDER = "_jobs"
STORE_VERSION = 1  # of `store.json` and of the columns of its datasets
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
            UsageError: there is no store.
            OutputTooNewError: a newer version wrote it.
            OutputDamagedError: `store.json` is not what this version writes.
            OutputUnavailableError: it cannot be read now.
        """
        found = self.read_if_there()
        if found is None:
            raise UsageError(f"{self.uri}: there is no store; `clipfleet backfill` makes one")
        return found

    def read_if_there(self) -> StoreFile | None:
        """See `read`; None if there is no store."""
        data = self._output.read(STORE_FILE)
        return None if data is None else _parsed(data, f"{self.uri}/{STORE_FILE}")

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


def _written(store: StoreFile) -> bytes:
    return store.model_dump_json(indent=1).encode()


def _parsed(data: bytes, where: str) -> StoreFile:
    try:
        values: Any = json.loads(data)
        version = values["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise OutputDamagedError(f"{where} is not the description of a store") from None
    if version != STORE_VERSION:
        raise OutputTooNewError(
            f"{where} has version {version}, this clipfleet reads {STORE_VERSION}: update it"
        )
    try:
        return StoreFile.model_validate(values)
    except ValidationError as error:
        raise OutputDamagedError(f"{where} is damaged: {first_problem(error)}") from None
