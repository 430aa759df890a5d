"""Which models there are, where their files lie here, and how they come from the Hugging Face hub.

The only module that talks to the hub. What its cache holds is used without a question to the network: workers
start quickly, also without one, and weights do not change under a running fleet.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeGuard
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from clipfleet.contract.jobs import DEFAULT_MODEL, DEMO_MODEL
from clipfleet.contract.model_names import HUB, LOCAL_DIR
from clipfleet.errors import UsageError
from clipfleet_worker.failures import ModelUnavailableError, first_line
from clipfleet_worker.models import open_clip_models, transformers_layout

_DEMO_FOLDER = Path(str(files("clipfleet_worker"))) / "demo_model"
_OPEN_CLIP_CONFIG = "open_clip_config.json"
_TRANSFORMERS_CONFIG = "config.json"
_WEIGHTS_INDEX = "model.safetensors.index.json"  # names the files of weights that come in several
_TRANSFORMERS_WEIGHTS = ("model.safetensors", _WEIGHTS_INDEX, "pytorch_model.bin")
_TRANSFORMERS_PREPROCESSING = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
                    "tokenizer.model")  # fmt: skip

_REACH_TIMEOUT_SECONDS = 5.0


class Layout(StrEnum):
    """How the files of a model are to be read."""

    NAMED = "named"  # open_clip knows the architecture by name, the file holds nothing but weights
    OPEN_CLIP = "open_clip"  # open_clip's configuration beside the weights
    TRANSFORMERS = "transformers"  # the configuration of a transformers CLIPModel beside the weights


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model, all on this machine."""

    layout: Layout
    configuration: dict[str, Any]  # of the architecture, in open_clip's words: embed_dim, text_cfg, ...
    preprocessing: dict[str, Any]  # in open_clip's words; what is not said is its default
    weights: tuple[Path, ...]
    tokenizer: Path | None  # folder of a tokenizer's files; None: CLIP's own, which open_clip brings

    @property
    def folder(self) -> Path:
        """Where the weights lie, and the configuration if there is one."""
        return self.weights[0].parent

    @property
    def size_bytes(self) -> int:
        """Of the weights."""
        return sum(path.stat().st_size for path in self.weights)


class _NotHereError(Exception):
    """A file is not on this machine."""


class _NotThereError(OSError):
    """A file is not on the hub either."""


@dataclass(frozen=True, slots=True)
class _Store:
    """What the hub's cache on this machine holds, and, if that is allowed, the hub for what it lacks."""

    may_download: bool

    def file(self, repository: str, names: Sequence[str]) -> Path:
        """The first of some files that is there.

        Raises:
            _NotHereError: none is on this machine, and nothing may be downloaded.
            _NotThereError: the hub has none either.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        found = _cached(repository, names)
        if found is not None:
            return found
        self._require_hub()
        for name in names:
            try:
                return Path(hf_hub_download(repository, name))
            except LocalEntryNotFoundError:  # the network broke down
                raise
            except EntryNotFoundError:
                continue
        raise _NotThereError(f"{repository} on the hub has no {' or '.join(names)}")

    def tokenizer(self, repository: str) -> Path:
        """Folder of a repository's tokenizer."""
        from huggingface_hub import snapshot_download

        found = _cached(repository, _TOKENIZER_FILES)
        if found is not None:
            return found.parent
        self._require_hub()
        wanted = [*_TOKENIZER_FILES, _TRANSFORMERS_CONFIG]
        return Path(snapshot_download(repository, allow_patterns=wanted))

    def _require_hub(self) -> None:
        """Fail within seconds where the hub is out of reach; its own client tries for minutes.

        Raises:
            _NotHereError: nothing may be downloaded.
            OSError: nothing answers there.
        """
        from huggingface_hub import constants

        if not self.may_download:
            raise _NotHereError
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        request = Request(constants.ENDPOINT, method="HEAD")  # noqa: S310 - the operator's own setting
        try:
            urlopen(request, timeout=_REACH_TIMEOUT_SECONDS).close()  # noqa: S310 - likewise
        except HTTPError:
            return  # something answers
        except OSError as error:
            reason = getattr(error, "reason", error)
            if not isinstance(reason, ssl.SSLError):  # the client may know certificates that Python does not
                raise OSError(f"{constants.ENDPOINT} cannot be reached: {reason}") from error


def _cached(repository: str, names: Sequence[str]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    paths = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def find_files(name: str) -> ModelFiles | None:
    """A model's files, None if they are not all on this machine. The network is not asked.

    Raises:
        ModelUnavailableError: there is no such model, or its configuration cannot be used.
    """
    try:
        return _resolve(name, _Store(may_download=False))
    except _NotHereError:
        return None
    except PermissionError as error:
        raise ModelUnavailableError(f"{error.filename} may not be read by user {os.getuid()}") from error


def repositories_in_cache() -> list[str]:
    """Repositories of models in the hub's cache, whatever of them is there; sorted."""
    from huggingface_hub import constants

    names = [path.name.removeprefix("models--") for path in Path(constants.HF_HUB_CACHE).glob("models--*--*")]
    return sorted(name.replace("--", "/", 1) for name in names)


def find_configuration(name: str) -> dict[str, Any] | None:
    """The configuration of a model's architecture, None if it is not on this machine.

    Raises:
        ModelUnavailableError: there is no such model, or its configuration cannot be used.
    """
    if name == DEMO_MODEL or name.startswith((LOCAL_DIR, HUB)):
        files = find_files(name)
        return files.configuration if files else None
    return open_clip_models.configuration_of(name.partition(":")[0])


def fetch_files(name: str) -> ModelFiles:
    """A model's files; those that are missing are downloaded.

    Raises:
        ModelUnavailableError: there is no such model, or it cannot be downloaded now.
    """
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        return _resolve(name, _Store(may_download=True))
    except RepositoryNotFoundError:
        raise ModelUnavailableError(
            f"model {name}: the hub has no such repository, or it is private: check the name, or set HF_TOKEN"
        ) from None
    except (HfHubHTTPError, OSError, HTTPException, ValueError) as error:  # the last: an address that is none
        raise ModelUnavailableError(  # the cause comes last: of a long line a row keeps the beginning
            f"model {name} is not on this machine: run `clipfleet-worker models pull {name}` where the hub "
            "can be reached (its cache may be copied), name a folder that holds it (./FOLDER), or use the "
            f"model `{DEMO_MODEL}`; it cannot be downloaded here: {first_line(error)}"
        ) from error


def _resolve(name: str, store: _Store) -> ModelFiles:
    if name == DEMO_MODEL:
        return _in_folder(_DEMO_FOLDER, store)
    if name.startswith(LOCAL_DIR):
        return _in_folder(Path(name.removeprefix(LOCAL_DIR)), store)
    if name.startswith(HUB):
        return _in_repository(name.removeprefix(HUB), store)
    return _named(name, store)


def _named(name: str, store: _Store) -> ModelFiles:
    architecture, _, pretrained = name.partition(":")
    configuration = open_clip_models.configuration_of(architecture)
    tokenizer = _tokenizer(configuration, None, store)
    if "/" in pretrained:
        file = Path(pretrained)
        if not file.is_file():
            raise ModelUnavailableError(f"model {name}: there is no file {file} on this machine")
        return ModelFiles(Layout.NAMED, configuration, {}, (file,), tokenizer)
    known = open_clip_models.known_weights(architecture, pretrained)
    weights = store.file(known.repository, known.file_names)
    return ModelFiles(Layout.NAMED, configuration, known.preprocessing, (weights,), tokenizer)


def _in_repository(repository: str, store: _Store) -> ModelFiles:
    config = store.file(repository, (_OPEN_CLIP_CONFIG, _TRANSFORMERS_CONFIG))
    if config.name == _OPEN_CLIP_CONFIG:
        store.file(repository, open_clip_models.WEIGHTS_FILES)
    else:
        for part in _parts_of(store.file(repository, _TRANSFORMERS_WEIGHTS)):
            store.file(repository, [part.name])
        with suppress(_NotHereError, _NotThereError):  # not needed
            store.file(repository, _TRANSFORMERS_PREPROCESSING)
    return _in_folder(config.parent, store)


def _in_folder(folder: Path, store: _Store) -> ModelFiles:
    if (folder / _OPEN_CLIP_CONFIG).is_file():
        return _open_clip_layout(folder, store)
    if (folder / _TRANSFORMERS_CONFIG).is_file():
        return _transformers_layout(folder)
    if not folder.is_dir():
        raise ModelUnavailableError(f"there is no folder {folder} on this machine")
    raise ModelUnavailableError(
        f"{folder} holds no model: neither {_OPEN_CLIP_CONFIG} nor {_TRANSFORMERS_CONFIG} is in it"
    )


def _open_clip_layout(folder: Path, store: _Store) -> ModelFiles:
    config = _read_json(folder / _OPEN_CLIP_CONFIG)
    configuration = config.get("model_cfg")
    if not _is_configuration(configuration):
        raise ModelUnavailableError(f"{folder / _OPEN_CLIP_CONFIG} has no model_cfg of open_clip")
    weights = open_clip_models.weights_in(folder)
    if weights is None:
        raise ModelUnavailableError(
            f"{folder} holds no weights: put {open_clip_models.WEIGHTS_FILES[0]} there"
        )
    tokenizer = _tokenizer(configuration, folder, store)
    return ModelFiles(
        Layout.OPEN_CLIP, configuration, config.get("preprocess_cfg") or {}, (weights,), tokenizer
    )


def _is_configuration(value: Any) -> TypeGuard[dict[str, Any]]:
    return (
        isinstance(value, dict)
        and isinstance(value.get("embed_dim"), int)
        and all(isinstance(value.get(tower), dict) for tower in ("vision_cfg", "text_cfg"))
    )


def _transformers_layout(folder: Path) -> ModelFiles:
    config = folder / _TRANSFORMERS_CONFIG
    try:
        configuration = transformers_layout.configuration_of(_read_json(config))
        preprocessing: dict[str, Any] = {}
        for name in _TRANSFORMERS_PREPROCESSING:
            if (folder / name).is_file():
                config = folder / name
                preprocessing = transformers_layout.preprocessing_of(
                    _read_json(config), configuration["vision_cfg"]["image_size"]
                )
                break
    except ValueError as error:
        raise ModelUnavailableError(f"{config} {error}") from error
    except (TypeError, AttributeError, KeyError, ArithmeticError) as error:
        raise ModelUnavailableError(f"{config} cannot be used: {first_line(error)}") from error
    return ModelFiles(
        Layout.TRANSFORMERS, configuration, preprocessing, _transformers_weights(folder), tokenizer=None
    )


def _transformers_weights(folder: Path) -> tuple[Path, ...]:
    for name in _TRANSFORMERS_WEIGHTS:
        if (folder / name).is_file():
            parts = _parts_of(folder / name)
            missing = [part.name for part in parts if not part.is_file()]
            if missing:
                raise ModelUnavailableError(f"{folder} lacks {', '.join(missing)}, which {name} names")
            return parts
    raise ModelUnavailableError(f"{folder} holds no weights: put {_TRANSFORMERS_WEIGHTS[0]} there")


def _parts_of(weights: Path) -> tuple[Path, ...]:
    """The file itself, or the files that an index names."""
    if weights.name != _WEIGHTS_INDEX:
        return (weights,)
    names = _read_json(weights).get("weight_map", {}).values()
    return tuple(weights.parent / Path(name).name for name in sorted(set(names)))


def _tokenizer(configuration: dict[str, Any], folder: Path | None, store: _Store) -> Path | None:
    """Folder of the tokenizer that a configuration names: the model's own, or a repository of the hub."""
    repository = configuration["text_cfg"].get("hf_tokenizer_name")
    if not repository:
        return None
    if folder is not None and any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return folder
    return store.tokenizer(repository)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailableError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise ModelUnavailableError(f"{path} is no JSON object")
    return value


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model, and what is known of it without the network."""

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
    """Refuse names that no download can mend: open_clip does not know them, or the folder holds no model.

    Raises:
        UsageError: one of them; says what is wrong with it.
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
