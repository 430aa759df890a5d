"""Which store a backfill fills, and with which vectors."""

from __future__ import annotations

from os.path import realpath

from clipfleet.backfill.options import BackfillOptions
from clipfleet.contract.jobs import DEFAULT_MODEL
from clipfleet.contract.model_names import normalise_model
from clipfleet.errors import OutputConflictError, UsageError, usage_errors
from clipfleet.outputs import open_output
from clipfleet.outputs.job_file import job_of
from clipfleet.sources import ReadOptions, Source, SourceLike, source_of
from clipfleet.sources.uris import has_scheme, local_path
from clipfleet.store.place import EmbeddedBy, StoreFile, StorePlace, store_place

VECTOR_OPTIONS = ("model", "precision", "decode", "exif")


def open_place(text: str) -> StorePlace:
    """The place of a store that is there, or is to be made.

    Raises:
        UsageError: it is none, or holds the results of a job.
        OutputUnavailableError: it cannot be read now.
    """
    place = store_place(text)
    if place.look() is None and job_of(open_output(place.uri)) is not None:
        raise OutputConflictError(
            f"{place.uri} holds the results of a job: name another folder or prefix for the store"
        )
    return place


def listed_source(source: SourceLike, options: BackfillOptions, store: str) -> Source:
    """Open a source, with items that are named by their URIs where they have no ids. See `source_of`.

    Raises:
        UsageError: the store, of this URI, lies in the source: each listing would walk its files.
    """
    asked = ReadOptions(options.url_column, options.id_column, options.base_uri, named_by_uri=True)
    found = source_of(source, asked)
    if _lies_in(store, found.description.uri):
        raise UsageError(f"{store} lies in the source: name a folder or prefix outside it for the store")
    return found


def _lies_in(place: str, source: str) -> bool:
    """Whether a place is a source, or a folder or prefix in it; none is in a list, or in a pattern."""
    inner, outer = (
        f"{(uri if has_scheme(uri) else realpath(uri)).rstrip('/')}/" for uri in (place, local_path(source))
    )
    return inner.startswith(outer)


def wanted_vectors(options: BackfillOptions) -> EmbeddedBy:
    """What makes the vectors of a new store, or of a migration."""
    with usage_errors():
        return EmbeddedBy(**{"model": DEFAULT_MODEL} | given_vectors(options))


def other_vectors(options: BackfillOptions, current: EmbeddedBy) -> EmbeddedBy:
    """What makes the vectors after a migration: as now, but for the options that are given.

    Raises:
        UsageError: none is given.
    """
    given = given_vectors(options)
    if not given:
        raise UsageError("a migration needs to know to which vectors: give a `model=`")
    with usage_errors():
        return EmbeddedBy(**{name: getattr(current, name) for name in VECTOR_OPTIONS} | given)


def require_same_vectors(options: BackfillOptions, store: StoreFile, uri: str) -> None:
    """Raise `UsageError` for an option that differs from what the store has."""
    for name, value in given_vectors(options).items():
        has = getattr(store.current, name)
        if value != has:
            raise UsageError(
                f"{uri} has vectors with `{name}=` {has}, not {value}: leave the option out, or fill the "
                "store with other vectors by `migrate=True`"
            )


def takes_any_vectors(store: StoreFile) -> bool:
    """Whether a store has no vectors yet: those that it names are only those that it was made for."""
    return store.current.fingerprint is None and store.migration is None


def with_wanted_vectors(options: BackfillOptions, store: StoreFile, uri: str) -> StoreFile:
    """The store as a night with these options fills it. Raises like `require_same_vectors`."""
    if not takes_any_vectors(store):
        require_same_vectors(options, store, uri)
        return store
    given = given_vectors(options)
    with usage_errors():
        current = EmbeddedBy(**{name: getattr(store.current, name) for name in VECTOR_OPTIONS} | given)
    return store if current == store.current else store.model_copy(update={"current": current})


def is_filled_by(current: EmbeddedBy, wanted: EmbeddedBy) -> bool:
    """Whether a dataset has the vectors that are wanted."""
    return all(getattr(current, name) == getattr(wanted, name) for name in VECTOR_OPTIONS)


def given_vectors(options: BackfillOptions) -> dict[str, str]:
    """The options of the vectors that are given, the model by its full name."""
    values = {name: getattr(options, name) for name in VECTOR_OPTIONS}
    found = {name: value for name, value in values.items() if value is not None}
    if "model" in found:
        with usage_errors():
            found["model"] = normalise_model(found["model"])
    return found
