"""The environments of the programs, see `make test-peers`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import service_is_missing


@pytest.fixture(scope="session")
def python_of() -> Callable[[str], Path]:
    """The Python of an environment, by the variable that names it."""

    def found(variable: str) -> Path:
        path = os.environ.get(variable)
        if path is None:
            service_is_missing(f"{variable} is not set: use `make test-peers`")
        return Path(path).absolute()

    return found
