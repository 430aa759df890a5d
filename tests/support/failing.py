"""A function that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn


def failing(error: BaseException) -> Callable[..., NoReturn]:
    """Takes anything, and raises this."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail
