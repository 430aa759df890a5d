"""Runs the Lua scripts, each with the names of `keys.py` and the shared transitions in front."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import redis
from redis.exceptions import NoScriptError

from clipfleet import keys
from clipfleet.redis_connection import redis_errors


class LuaScripts:
    """Some of the scripts, on one connection. Nothing is sent before one is run."""

    def __init__(self, client: redis.Redis, url: str, names: Iterable[str]) -> None:
        folder = files("clipfleet") / "lua"
        prelude = keys.lua_prelude() + "\n" + (folder / "transitions.lua").read_text() + "\n"
        self._url = url
        self._redis = client
        self._texts = {name: prelude + (folder / f"{name}.lua").read_text() for name in names}
        self._scripts = {name: client.register_script(text) for name, text in self._texts.items()}

    def run(self, name: str, *arguments: str | int | float | bytes) -> Any:
        """What a script answers; raises `RedisUnavailableError`."""
        with redis_errors(self._url):
            try:
                return self._scripts[name](keys=[], args=list(arguments))
            except NoScriptError:  # a server that restarts or takes over forgets it between load and call
                return self._redis.eval(self._texts[name], 0, *arguments)
