"""Loads the Lua scripts, each with the names of `keys.py` and the shared transitions in front."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import redis

from clipfleet import keys


def load_scripts(client: redis.Redis, names: Iterable[str]) -> dict[str, Any]:
    """The scripts by name, ready to be called with `keys` and `args`; nothing is sent yet."""
    folder = files("clipfleet") / "lua"
    prelude = keys.lua_prelude() + "\n" + (folder / "transitions.lua").read_text()
    return {
        name: client.register_script(prelude + "\n" + (folder / f"{name}.lua").read_text()) for name in names
    }
