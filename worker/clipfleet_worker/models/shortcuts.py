"""Shortcuts that make models quick to import and to build. Knows no open_clip."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_COMPILER, _COMPILER_FACTS = "torch._dynamo", "torch._dynamo.utils"


@contextmanager
def without_random_weights() -> Iterator[None]:
    """Build modules in this thread without drawing random weights, which a file's weights replace.

    Drawing 151 million random numbers takes a second. Loading weights afterwards replaces all, or fails.
    """
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    draws = {
        init.normal_, init.trunc_normal_, init.uniform_, init.kaiming_normal_, init.kaiming_uniform_,
        init.xavier_normal_, init.xavier_uniform_, init.orthogonal_,
    }  # fmt: skip

    class _NoDraws(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if function in draws:
                return args[0] if args else (kwargs or {})["tensor"]
            return function(*args, **(kwargs or {}))

    with _NoDraws():
        yield


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import torchvision without torch's compiler: a stand-in forwards the one call that it makes."""
    import torch  # noqa: F401 - first, so that its own parts of the compiler are not replaced

    if _COMPILER in sys.modules:
        yield
        return
    package, facts = ModuleType(_COMPILER), ModuleType(_COMPILER_FACTS)
    facts.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]  # a module made two lines up
    with replaced_modules({_COMPILER: package, _COMPILER_FACTS: facts}):
        yield


def _is_compile_supported(device_type: Any) -> Any:
    return importlib.import_module(_COMPILER_FACTS).is_compile_supported(device_type)


@contextmanager
def replaced_modules(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Put other modules under these names; None makes an import fail as if it were not installed."""
    sys.modules.update(modules)  # type: ignore[arg-type]  # None is a documented value here
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
