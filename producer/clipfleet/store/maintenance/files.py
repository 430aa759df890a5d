"""The files of a store, whatever they belong to: listed with their ages, and removed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from clipfleet.outputs import open_output
from clipfleet.outputs.scratch import output_errors
from clipfleet.s3.client import SCHEME, default_client, list_objects, split_s3_uri
from clipfleet.s3.failures import s3_errors
from clipfleet.store.dataset import Alive
from clipfleet.store.place import DATASET_NAME, JOBS_FOLDER, StorePlace

_SUFFIX = ".lance"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a store."""

    name: str  # below the store
    size_bytes: int
    modified_at: datetime


def stored_files(place: StorePlace, prefix: str = "", *, alive: Alive = lambda: None) -> Iterator[StoredFile]:
    """All files whose names begin with a prefix, in any order. Links are not followed.

    Args:
        place: of the store.
        prefix: empty, or the name of a folder with a slash at its end.
        alive: called after each file.
    """
    is_in_s3 = place.uri.startswith(SCHEME)
    for one in _in_s3(place.uri, prefix) if is_in_s3 else _in_folder(Path(place.uri), prefix):
        yield one
        alive()


def _in_folder(root: Path, prefix: str) -> Iterator[StoredFile]:
    with output_errors(root / prefix):
        for folder, _, names in os.walk(root / prefix):
            for name in names:
                path = Path(folder) / name
                with suppress(FileNotFoundError):  # removed meanwhile
                    facts = path.lstat()
                    changed_at = datetime.fromtimestamp(facts.st_mtime, UTC)
                    yield StoredFile(str(path.relative_to(root)), facts.st_size, changed_at)


def _in_s3(uri: str, prefix: str) -> Iterator[StoredFile]:
    bucket, key = split_s3_uri(uri)
    root = f"{key}/" if key else ""
    with s3_errors(f"{uri}/{prefix}"):
        for one in list_objects(default_client(), bucket, root + prefix):
            yield StoredFile(one.key.removeprefix(root), one.size_bytes, one.modified_at or datetime.now(UTC))


def remove_files(place: StorePlace, names: Iterable[str], *, alive: Alive, last: str = "") -> None:
    """Remove files, in this order. Idempotent.

    Args:
        place: of the store.
        names: of files.
        alive: called before each one; what it raises ends the removal.
        last: the end of the name that is removed after all others.
    """
    output = open_output(place.uri)
    for name in sorted(names, key=lambda name: bool(last) and name.endswith(last)):
        alive()
        output.remove(name)


def remove_folder(
    place: StorePlace, files: Sequence[StoredFile], top: str, *, alive: Alive, last: str = ""
) -> None:
    """Remove all files of a folder, see `remove_files`, and the folder."""
    remove_files(place, [one.name for one in files], alive=alive, last=last)
    _remove_empty_folders(place, top)


def _remove_empty_folders(place: StorePlace, top: str) -> None:
    """Remove the folders at and below a folder that hold no file; S3 has none."""
    if place.uri.startswith(SCHEME):
        return
    for folder, _, _ in os.walk(Path(place.uri) / top, topdown=False):
        with suppress(OSError):  # a file is in it
            Path(folder).rmdir()


def dataset_names(files: Iterable[StoredFile]) -> list[str]:
    """Fingerprints of all datasets, those of earlier models included."""
    folders = {one.name.partition("/")[0] for one in files if "/" in one.name}
    return sorted(name.removesuffix(_SUFFIX) for name in folders if DATASET_NAME.fullmatch(name))


def files_of_dataset(files: Iterable[StoredFile], fingerprint: str) -> list[StoredFile]:
    """The files of a dataset, manifests first: without them it is none, whatever else is left."""
    its = [one for one in files if one.name.startswith(f"{fingerprint}{_SUFFIX}/")]
    return sorted(its, key=lambda one: "/_versions/" not in one.name)


def outputs_of_jobs(files: Iterable[StoredFile]) -> dict[str, list[StoredFile]]:
    """The files of jobs, by the ids of these."""
    found: dict[str, list[StoredFile]] = {}
    for one in files:
        folder, _, rest = one.name.partition("/")
        job_id, _, name = rest.partition("/")
        if folder == JOBS_FOLDER and name:
            found.setdefault(job_id, []).append(one)
    return found
