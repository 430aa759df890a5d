"""A gateway that is killed at one of the changes that it makes in its place, or of its calls to Redis."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import redis

from clipfleet.outputs.folder import FolderOutput
from tests.support.gateway_app import gateway_services

_CHANGES = ("publish", "replace_if", "remove", "remove_folder")  # `create` and `replace` publish
_PROCESSES = multiprocessing.get_context("forkserver")  # forks without the threads of the tests
_PROCESSES.set_forkserver_preload([__name__])


def is_killed(call: int, place: str, redis_url: str, owner: str, batch_id: str) -> bool:
    """Advance a batch in a process that dies before call number `call`, from 0; False if there are fewer."""
    process = _PROCESSES.Process(target=_advance, args=(call, place, redis_url, owner, batch_id))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _advance(call: int, place: str, redis_url: str, owner: str, batch_id: str) -> None:
    with gateway_services(place, redis_url) as services:
        calls = itertools.count()
        for name in _CHANGES:
            setattr(FolderOutput, name, _deadly(getattr(FolderOutput, name), calls, call))
        redis.Redis.execute_command = _deadly(redis.Redis.execute_command, calls, call)  # type: ignore[method-assign]
        services.batches.advance(owner, batch_id)


def _deadly(does: Callable[..., Any], calls: itertools.count[int], call: int) -> Callable[..., Any]:
    def dying(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return does(*arguments, **options)

    return dying
