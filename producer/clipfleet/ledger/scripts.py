"""Runs the Lua scripts, each behind those names of `keys.py` and shared functions that it uses.

A server creates all local values and functions of a script with each call: unused ones took up to a fifth of
the time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from typing import Any

import redis
from redis.exceptions import NoScriptError, ResponseError

from clipfleet.ledger import keys
from clipfleet.redis.connection import redis_errors

_SHARED = ("measured", "outbox", "transitions", "mending")  # each uses only those before it
_AT_HAND = "local at_hand, queue_at_hand"  # the job and the queue that a script works on, see guard.lua
_FOR_THE_GUARD = re.compile(r"^ *(queue_)?at_hand = .*$\n", re.MULTILINE)
# redis-py has no class for them.
_OF_THE_SERVER = ("ACL failure", "MISCONF", "NOREPLICAS", "MASTERDOWN", "BUSY", "UNKILLABLE")
_DEFINITION = re.compile(r"^(?=local )", re.MULTILINE)
_DEFINED = re.compile(r"local (?:function (\w+)|([\w, ]+) =)")
_RARELY = re.compile(r"^-- Rarely:\n", re.MULTILINE)
_COMMENT_LINE = re.compile(r"^ *--.*$", re.MULTILINE)


class LuaScripts:
    """Some of the scripts, on one connection; nothing is sent before the first run."""

    def __init__(self, client: redis.Redis, url: str, names: Iterable[str]) -> None:
        shared = shared_definitions()
        self._url = url
        self._redis = client
        self._shared = shared
        self._texts = {name: unguarded_script(shared, script_text(name)) for name in names}
        self._scripts = {name: client.register_script(text) for name, text in self._texts.items()}

    def run(self, name: str, *arguments: str | int | float | bytes) -> Any:
        """Run a script and return its answer; raises `RedisUnavailableError`."""
        with redis_errors(self._url):
            try:
                return self._scripts[name](keys=[], args=list(arguments))
            except NoScriptError:  # lost by a restart or a failover between load and call
                return self._run_guarded(name, *arguments)
            except ResponseError as error:
                if type(error) is not ResponseError or str(error).startswith(_OF_THE_SERVER):
                    raise
                try:
                    return self._run_guarded(name, *arguments)
                except ResponseError:  # there was nothing to repair, or this user lacks a right
                    raise error from None

    def run_each(self, name: str, arguments: Sequence[str], *more: str) -> list[Any]:
        """Run a script with each argument, followed by all `more`, in one round trip.

        An error of redis-py is in the place of its answer: nothing that is damaged is repaired, see `run`.
        Raises `RedisUnavailableError`.
        """
        if not arguments:
            return []
        first, *others = arguments
        with redis_errors(self._url), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.eval(self._texts[name], 0, first, *more)  # the server keeps the text for the others
            for argument in others:
                pipeline.evalsha(self._scripts[name].sha, 0, argument, *more)
            return pipeline.execute(raise_on_error=False)

    def _run_guarded(self, name: str, *arguments: str | int | float | bytes) -> Any:
        """Run a script together with `guard.lua`: only after an error, because that is slower."""
        text = guarded_script(self._shared, script_text(name), script_text("guard"))
        return self._redis.eval(text, 0, *arguments)


def script_text(name: str) -> str:
    """The text of a file in `lua`, by its name without the extension."""
    return (files("clipfleet.ledger") / "lua" / f"{name}.lua").read_text()


def shared_definitions() -> str:
    """All definitions that scripts may use."""
    return "\n".join([keys.lua_prelude(), *map(script_text, _SHARED)])


def whole_script(shared: str, script: str) -> str:
    """A script below the shared definitions that it uses, directly or indirectly.

    Args:
        shared: definitions, each of which starts with `local` at the start of a line and uses only earlier
            ones.
        script: starts with a comment that says what it does. Definitions that are used only below a line
            `-- Rarely:` are placed there: they cost nothing if the script has returned before.
    """
    definitions, parts = [*_definitions(shared)], []
    for part in _RARELY.split(script):
        needed, definitions = _split_by_use(definitions, part)
        parts += [*needed, part]
    return "\n".join(parts)


def unguarded_script(shared: str, script: str) -> str:
    """A whole script for its first run: without the marks that only the guard needs."""
    return _FOR_THE_GUARD.sub("", whole_script(shared, script))


def guarded_script(shared: str, script: str, guard: str) -> str:
    """A whole script, and the guard, which repairs damage if the script raises.

    Args:
        shared: see `whole_script`.
        script: see `whole_script`. Its variables `at_hand` and `queue_at_hand` name the job and the queue
            that it works on.
        guard: runs with the error as `raised`; may run the script again as `body()`.
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
    """The texts of the definitions that a script uses, and the other definitions, both in order."""
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
