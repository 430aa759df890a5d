"""Runs the Lua scripts, each with those names of `keys.py` and shared transitions in front that it uses.

A server makes all of a script's local values and functions anew with each call: those that it did not use
cost it up to a fifth of its time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.resources import files
from typing import Any

import redis
from redis.exceptions import NoScriptError, ResponseError

from clipfleet.ledger import keys
from clipfleet.redis.connection import redis_errors

_SHARED = ("measured", "transitions", "mending")  # each uses what stands before it only
_AT_HAND = "local at_hand, queue_at_hand"  # the job and the queue that a script deals with, see guard.lua
_FOR_THE_GUARD = re.compile(r"^ *(queue_)?at_hand = .*$\n", re.MULTILINE)
# redis-py has no class for them.
_OF_THE_SERVER = ("ACL failure", "MISCONF", "NOREPLICAS", "MASTERDOWN", "BUSY", "UNKILLABLE")
_DEFINITION = re.compile(r"^(?=local )", re.MULTILINE)
_DEFINED = re.compile(r"local (?:function (\w+)|([\w, ]+) =)")
_RARELY = re.compile(r"^-- Rarely:\n", re.MULTILINE)
_COMMENT_LINE = re.compile(r"^ *--.*$", re.MULTILINE)


class LuaScripts:
    """Some of the scripts, on one connection. Nothing is sent before one is run."""

    def __init__(self, client: redis.Redis, url: str, names: Iterable[str]) -> None:
        shared = shared_definitions()
        self._url = url
        self._redis = client
        self._shared = shared
        self._texts = {name: unguarded_script(shared, script_text(name)) for name in names}
        self._scripts = {name: client.register_script(text) for name, text in self._texts.items()}

    def run(self, name: str, *arguments: str | int | float | bytes) -> Any:
        """What a script answers; raises `RedisUnavailableError`."""
        with redis_errors(self._url):
            try:
                return self._scripts[name](keys=[], args=list(arguments))
            except NoScriptError:  # a server that restarts or takes over forgets it between load and call
                return self._run_guarded(name, *arguments)
            except ResponseError as error:
                if type(error) is not ResponseError or str(error).startswith(_OF_THE_SERVER):
                    raise
                try:
                    return self._run_guarded(name, *arguments)
                except ResponseError:  # nothing was to be mended, or this user may not
                    raise error from None

    def _run_guarded(self, name: str, *arguments: str | int | float | bytes) -> Any:
        """Run a script with what mends damage: sent only when it is needed, for it slows the script down."""
        text = guarded_script(self._shared, script_text(name), script_text("guard"))
        return self._redis.eval(text, 0, *arguments)


def script_text(name: str) -> str:
    """A file of `lua`, by its name without the ending."""
    return (files("clipfleet.ledger") / "lua" / f"{name}.lua").read_text()


def shared_definitions() -> str:
    """All that scripts may use."""
    return "\n".join([keys.lua_prelude(), *map(script_text, _SHARED)])


def whole_script(shared: str, script: str) -> str:
    """A script below those shared definitions that it uses, and those that they use.

    Args:
        shared: definitions, each of which begins with `local` at the start of a line, and uses earlier ones
            only.
        script: begins with the comment that says what it does. What stands below a line `-- Rarely:` brings
            what only it uses along: nothing of that is made where the script has returned before.
    """
    definitions, parts = [*_definitions(shared)], []
    for part in _RARELY.split(script):
        needed, definitions = _split_by_use(definitions, part)
        parts += [*needed, part]
    return "\n".join(parts)


def unguarded_script(shared: str, script: str) -> str:
    """A whole script as it is run at first, for each chunk: without what only the guard asks for."""
    return _FOR_THE_GUARD.sub("", whole_script(shared, script))


def guarded_script(shared: str, script: str, guard: str) -> str:
    """A whole script, and below it what mends damage where the script raises.

    Args:
        shared: see `whole_script`.
        script: see `whole_script`. It says in `at_hand` which job it deals with, and in `queue_at_hand` which
            queue.
        guard: called with what was raised, as `raised`; it may run the script again, as `body()`.
    """
    return "\n".join(
        [
            _AT_HAND,
            "local function body()",
            whole_script(shared, script),
            "end",
            "local has_worked, raised = pcall(body)",
            "if has_worked then return raised end",
            whole_script(shared, guard),
        ]
    )


def _split_by_use(
    definitions: Iterable[tuple[set[str], str]], script: str
) -> tuple[list[str], list[tuple[set[str], str]]]:
    """Texts of the definitions that a script uses, and the other definitions; both in their order."""
    used, needed, others = _words(script), [], []
    for names, definition in reversed([*definitions]):
        if used & names:
            used |= _words(definition)
            needed.append(definition)
        else:
            others.append((names, definition))
    return needed[::-1], others[::-1]


def _definitions(shared: str) -> Iterator[tuple[set[str], str]]:
    for definition in _DEFINITION.split(_COMMENT_LINE.sub("", shared)):
        if found := _DEFINED.match(definition):
            yield _words(found[1] or found[2]), definition.strip()


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", _COMMENT_LINE.sub("", text)))
