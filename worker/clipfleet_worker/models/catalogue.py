"""The models by name: those that are served, on this machine, or known to open_clip. Loads none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clipfleet.contract.jobs import DEFAULT_MODEL, DEMO_MODEL
from clipfleet.errors import UsageError
from clipfleet_worker.failures import ModelUnavailableError
from clipfleet_worker.models import open_clip_models
from clipfleet_worker.models.files import ModelFiles, find_files
from clipfleet_worker.models.hub import repositories_in_cache


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model, and what this machine knows of it without the network."""

    name: str
    is_served: bool  # by a worker with the settings of this environment
    files: ModelFiles | None  # None: not on this machine
    problem: str = ""  # why it cannot be used as it is


def list_models(served: Sequence[str], *, every: bool) -> list[ModelEntry]:
    """The served models, those on this machine, and if `every` all that open_clip knows by name."""
    entries = [_entry(name, is_served=True) for name in served]
    for name in _others(served):
        entry = _entry(name, is_served=False)
        is_known_by_name = not name.startswith("hf-hub:")
        if entry.files is not None or (every and is_known_by_name):
            entries.append(entry)
    return entries


def require_known(models: Sequence[str]) -> None:
    """Refuse names that no download can provide: unknown to open_clip, or a folder without a model.

    Raises:
        UsageError: for the first of them, with the reason.
    """
    for name in models:
        if name in (DEFAULT_MODEL, DEMO_MODEL):
            continue  # known without open_clip, whose import takes seconds
        try:
            find_files(name)
        except ModelUnavailableError as error:
            raise UsageError(f"model {name}: {error}") from None


def _others(served: Sequence[str]) -> Iterator[str]:
    names = [
        DEMO_MODEL,
        *open_clip_models.known_models(),
        *(f"hf-hub:{name}" for name in repositories_in_cache()),
    ]
    return (name for name in names if name not in served)


def _entry(name: str, *, is_served: bool) -> ModelEntry:
    try:
        return ModelEntry(name, is_served, find_files(name))
    except ModelUnavailableError as error:
        return ModelEntry(name, is_served, None, str(error))
