"""From a model's name to its files and configuration on this machine. Network access is in `hub`."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeGuard

from clipfleet.contract.jobs import DEMO_MODEL
from clipfleet.contract.model_names import HUB, LOCAL_DIR
from clipfleet_worker.failures import ModelUnavailableError, first_line
from clipfleet_worker.models import open_clip_models, transformers_layout
from clipfleet_worker.models.hub import (
    TOKENIZER_FILES,
    TRANSFORMERS_CONFIG,
    HubStore,
    NotHereError,
    NotThereError,
    OnBytes,
)

_DEMO_FOLDER = Path(str(files("clipfleet_worker"))) / "demo_model"
_OPEN_CLIP_CONFIG = "open_clip_config.json"
_WEIGHTS_INDEX = "model.safetensors.index.json"  # names the files of weights that come in several
_TRANSFORMERS_WEIGHTS = ("model.safetensors", _WEIGHTS_INDEX, "pytorch_model.bin")
_TRANSFORMERS_PREPROCESSING = ("preprocessor_config.json", "processor_config.json")


class Layout(StrEnum):
    """How the files of a model are read."""

    NAMED = "named"  # open_clip knows the architecture by name, the file holds nothing but weights
    OPEN_CLIP = "open_clip"  # open_clip's configuration beside the weights
    TRANSFORMERS = "transformers"  # the configuration of a transformers CLIPModel beside the weights


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model, all on this machine."""

    layout: Layout
    configuration: dict[str, Any]  # of the architecture, in open_clip's words: embed_dim, text_cfg, ...
    preprocessing: dict[str, Any]  # in open_clip's words; missing values are its defaults
    weights: tuple[Path, ...]
    tokenizer: Path | None  # folder of a tokenizer's files; None: CLIP's own, which open_clip brings

    @property
    def folder(self) -> Path:
        """Folder of the weights, and of the configuration if there is one."""
        return self.weights[0].parent

    @property
    def size_bytes(self) -> int:
        """Of the weights."""
        return sum(path.stat().st_size for path in self.weights)


def find_files(name: str) -> ModelFiles | None:
    """A model's files, None if some are not on this machine. Does not use the network.

    Raises:
        ModelUnavailableError: there is no such model, or its configuration cannot be used.
    """
    try:
        return _resolve(name, HubStore(may_download=False))
    except NotHereError:
        return None
    except PermissionError as error:
        raise ModelUnavailableError(f"{error.filename}: user {os.getuid()} may not read it") from error


def find_configuration(name: str) -> dict[str, Any] | None:
    """The configuration of a model's architecture, None if it is not on this machine.

    Raises:
        ModelUnavailableError: there is no such model, or its configuration cannot be used.
    """
    if name == DEMO_MODEL or name.startswith((LOCAL_DIR, HUB)):
        files = find_files(name)
        return files.configuration if files else None
    return open_clip_models.configuration_of(name.partition(":")[0])


def fetch_files(name: str, on_bytes: OnBytes | None = None) -> ModelFiles:
    """A model's files; missing ones are downloaded.

    Args:
        name: of the model.
        on_bytes: called during the download of each large file.

    Raises:
        ModelUnavailableError: there is no such model, or it cannot be downloaded now.
    """
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        return _resolve(name, HubStore(may_download=True, on_bytes=on_bytes))
    except RepositoryNotFoundError:
        raise ModelUnavailableError(
            f"model {name}: the hub has no such repository, or it is private: check the name, or set HF_TOKEN"
        ) from None
    except (HfHubHTTPError, OSError, HTTPException, ValueError) as error:  # ValueError: an invalid address
        raise ModelUnavailableError(  # the cause comes last: a row keeps the beginning of a long line
            f"model {name} is not on this machine: run `clipfleet-worker models pull {name}` where the hub "
            "can be reached (its cache may be copied), name a folder that holds it (./FOLDER), or use the "
            f"model `{DEMO_MODEL}`; it cannot be downloaded here: {first_line(error)}"
        ) from error


def _resolve(name: str, store: HubStore) -> ModelFiles:
    if name == DEMO_MODEL:
        return _in_folder(_DEMO_FOLDER, store)
    if name.startswith(LOCAL_DIR):
        return _in_folder(Path(name.removeprefix(LOCAL_DIR)), store)
    if name.startswith(HUB):
        return _in_repository(name.removeprefix(HUB), store)
    return _named(name, store)


def _named(name: str, store: HubStore) -> ModelFiles:
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


def _in_repository(repository: str, store: HubStore) -> ModelFiles:
    config = store.file(repository, (_OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG))
    if config.name == _OPEN_CLIP_CONFIG:
        store.file(repository, open_clip_models.WEIGHTS_FILES)
    else:
        for part in _parts_of(store.file(repository, _TRANSFORMERS_WEIGHTS)):
            store.file(repository, [part.name])
        with suppress(NotHereError, NotThereError):  # not needed
            store.file(repository, _TRANSFORMERS_PREPROCESSING)
    return _in_folder(config.parent, store)


def _in_folder(folder: Path, store: HubStore) -> ModelFiles:
    if (folder / _OPEN_CLIP_CONFIG).is_file():
        return _open_clip_layout(folder, store)
    if (folder / TRANSFORMERS_CONFIG).is_file():
        return _transformers_layout(folder)
    if not folder.is_dir():
        raise ModelUnavailableError(f"there is no folder {folder} on this machine")
    raise ModelUnavailableError(
        f"{folder} holds no model: neither {_OPEN_CLIP_CONFIG} nor {TRANSFORMERS_CONFIG} is in it"
    )


def _open_clip_layout(folder: Path, store: HubStore) -> ModelFiles:
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
    config = folder / TRANSFORMERS_CONFIG
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


def _tokenizer(configuration: dict[str, Any], folder: Path | None, store: HubStore) -> Path | None:
    """Folder of the tokenizer that a configuration names: the model's own, or a repository of the hub."""
    repository = configuration["text_cfg"].get("hf_tokenizer_name")
    if not repository:
        return None
    if folder is not None and any((folder / name).is_file() for name in TOKENIZER_FILES):
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


def embedding_dimension(name: str) -> int | None:
    """Length of a model's vectors, None if its configuration is not on this machine."""
    try:
        configuration = find_configuration(name)
    except ModelUnavailableError:
        return None
    return int(configuration["embed_dim"]) if configuration else None
