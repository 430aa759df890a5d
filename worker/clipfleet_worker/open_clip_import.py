"""How open_clip is imported: without what most models have no use for, which takes two thirds of its time.

A plain `import open_clip` loads transformers and timm, which text and image towers of theirs need and no
others, and by way of torchvision torch's compiler, for one question that object detectors ask: 3.2 s of a
core, torch included. Without them it is 1.4 s, and every start of a worker waits for it. open_clip itself
runs where transformers and timm are not installed; nothing else is left out, and nothing in it is changed.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_OF_SOME_TOWERS = ("timm", "transformers")
_COMPILER, _COMPILER_FACTS = "torch._dynamo", "torch._dynamo.utils"

_lock = threading.Lock()
_is_partial = False  # open_clip is imported, and believes that timm and transformers are not installed


def import_open_clip(configuration: Mapping[str, Any] | None = None) -> Any:
    """The package; whole if a model of this configuration needs that, or if it was imported whole before.

    Models that exist stay as they are when it is imported anew.
    """
    global _is_partial
    needs_all = configuration is not None and needs_timm_or_transformers(configuration)
    with _lock:
        if _is_partial and needs_all:
            for name in [name for name in sys.modules if name.partition(".")[0] == "open_clip"]:
                del sys.modules[name]
            _is_partial = False
        if needs_all or "open_clip" in sys.modules:
            return importlib.import_module("open_clip")
        with _without_compiler():
            importlib.import_module("torchvision")
        hidden = [name for name in _OF_SOME_TOWERS if name not in sys.modules]
        with _replaced({name: None for name in hidden}):
            found = importlib.import_module("open_clip")
        _is_partial = bool(hidden)
        return found


def needs_timm_or_transformers(configuration: Mapping[str, Any]) -> bool:
    """Whether a tower of a model with this configuration is theirs."""
    return (
        "multimodal_cfg" in configuration  # CoCa
        or bool(configuration.get("text_cfg", {}).get("hf_model_name"))
        or bool(configuration.get("vision_cfg", {}).get("timm_model_name"))
    )


@contextmanager
def _without_compiler() -> Iterator[None]:
    """While torchvision is imported, its question stands in for the compiler; asked, it is passed on."""
    import torch  # noqa: F401 - what it has of the compiler by itself, it keeps

    if _COMPILER in sys.modules:
        yield
        return
    package, facts = ModuleType(_COMPILER), ModuleType(_COMPILER_FACTS)
    facts.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]  # a module made here
    with _replaced({_COMPILER: package, _COMPILER_FACTS: facts}):
        yield


def _is_compile_supported(device_type: Any) -> Any:
    return importlib.import_module(_COMPILER_FACTS).is_compile_supported(device_type)


@contextmanager
def _replaced(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Have other modules under these names, or none (an import then says that it is not installed)."""
    sys.modules.update(modules)  # type: ignore[arg-type]  # None is Python's own way to say so
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
