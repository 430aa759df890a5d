"""Which version of a store a reader gets: the newest, one by its number, or the one of a date."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from clipfleet.errors import ResultsNotReadyError, UsageError
from clipfleet.store.committing.of_job import BACKFILL, KIND, MIGRATION
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import EmbeddedBy, StoreFile, StorePlace

_NOT_KNOWN = "unknown"  # model of a dataset that is not, or no longer, the current one


def current_dataset(place: StorePlace, as_of: str | None = None) -> tuple[StoreFile, VectorDataset]:
    """What a store is, and the vectors of its current model.

    Args:
        place: of the store.
        as_of: VERSION or DATE, see `version_at`; None: the newest version.

    Raises:
        UsageError: there is no store, or no such version (any more).
        ResultsNotReadyError: there are no vectors yet.
        OutputUnavailableError: the store cannot be read.
    """
    store, dataset = current_dataset_if_there(place)
    if dataset is None:
        raise ResultsNotReadyError(
            f"{place.uri}: the store has no vectors yet: `clipfleet backfill` fills it"
        )
    return store, dataset if as_of is None else version_at(dataset, as_of)


def current_dataset_if_there(place: StorePlace) -> tuple[StoreFile, VectorDataset | None]:
    """What a store is, and the newest version of its vectors; None if there are none yet."""
    store = place.read()
    while store.current.fingerprint is not None:
        try:
            return store, VectorDataset.open(place.dataset_uri(store.current.fingerprint))
        except FileNotFoundError:
            before, store = store, place.read()
            if store == before:  # else a migration has ended, and the earlier dataset was removed
                raise place.dataset_is_gone(str(store.current.fingerprint)) from None
    return store, None


def dataset_of(place: StorePlace, fingerprint: str) -> tuple[StoreFile, VectorDataset]:
    """The newest version of the vectors of a model, which need not be the current one.

    Returns:
        The store as if that model were current, and its dataset.

    Raises:
        UsageError: there is no store, or it has no vectors of this model (any more).
        OutputUnavailableError: the store cannot be read.
    """
    store = place.read()
    try:
        dataset = VectorDataset.open(place.dataset_uri(fingerprint))
    except FileNotFoundError:
        raise UsageError(
            f"{place.uri} has no vectors of fingerprint {fingerprint} (any more); those of its current model "
            f"have {store.current.fingerprint or 'none yet'}"
        ) from None
    if store.current.fingerprint != fingerprint:
        other = EmbeddedBy(model=_NOT_KNOWN, fingerprint=fingerprint)
        store = store.model_copy(update={"current": other})
    return store, dataset


def version_at(dataset: VectorDataset, text: str) -> VectorDataset:
    """A version as a user names it.

    Args:
        dataset: at any version.
        text: a number, or a date with or without a time, in ISO 8601. A date stands for its end, a time
            without a zone is in UTC. Digits alone are a number if there is such a version.

    Raises:
        UsageError: it is neither, or there is no such version (any more), or the date is one of a migration,
            which had not filled the dataset yet.
    """
    time = _end_of(text)
    if not (text.isascii() and text.isdecimal()):
        if time is None:
            raise UsageError(f"{text!r} is neither a version nor a date such as 2026-11-30")
        return _at(dataset, text, time)
    number = int(text)
    if time is not None and number not in dataset.times():
        return _at(dataset, text, time)
    return VectorDataset.open(dataset.uri, number)


def _at(dataset: VectorDataset, text: str, time: datetime) -> VectorDataset:
    times = dataset.times()
    before = [number for number, at in times.items() if at <= time]
    if not before:
        oldest = min(times)
        raise UsageError(
            f"{dataset.uri} has no version of {text} (any more): the oldest one is {oldest}, "
            f"of {times[oldest]:%Y-%m-%d %H:%M:%S} UTC"
        )
    found = VectorDataset.open(dataset.uri, max(before))
    _require_whole(found, dataset, text)
    return found


def _require_whole(found: VectorDataset, newest: VectorDataset, text: str) -> None:
    """Refuse a version that a migration has left half filled: the store had another model then.

    Raises:
        UsageError: it is one, or the last one of an earlier time when the store had this model.
    """
    last = None
    for one in newest.versions(after=found.version):
        kind = one.properties.get(KIND)  # others than these two bring no rows
        if kind == BACKFILL:
            break
        last = one.number if kind == MIGRATION else last
    if last is not None:
        raise UsageError(
            f"{newest.uri} was being filled by a migration at {text}, and the store had another model: the "
            f"first whole version is {last}"
        )


def _end_of(text: str) -> datetime | None:
    """The last moment that a date or time stands for; None if the text is neither."""
    try:
        if len(text) <= len("2026-11-30"):
            day = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
            return day + timedelta(days=1) - timedelta.resolution
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
