"""Runs the application until a signal; what is under way is answered first."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from aiohttp import web

from clipfleet.errors import UsageError
from clipfleet_gateway.services import Services
from clipfleet_gateway.web.app import make_app
from clipfleet_gateway.web.connections import abort_unread, connection_factory, most_connections

LAST_ANSWERS_SECONDS = 20.0  # after a signal; then connections are closed
# Each step of a job's submit waits for so long behind the event loop, which is busy when many requests come.
_SWITCH_SECONDS = 0.0005  # Python's default is ten times that
_BACKLOG = 512  # connections that wait to be accepted


def run(services: Services, host: str, port: int, *, on_listening: Callable[[str], object]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        services: closed by the caller.
        host: address or name to listen at.
        port: 0: any.
        on_listening: called once in a thread, with the URL below which clients find everything.

    Raises:
        UsageError: the address is in use, or is none of this machine.
    """
    asyncio.run(_serve(services, host, port, on_listening))


async def _serve(services: Services, host: str, port: int, on_listening: Callable[[str], object]) -> None:
    ends = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ends.set)
    runner = web.AppRunner(
        make_app(services), shutdown_timeout=LAST_ANSWERS_SECONDS, handler_cancellation=True
    )
    await runner.setup()
    try:
        async with _listening(cast(web.Server, runner.server), host, port) as (address, actual_port):
            # Only now, so that a port in use costs no first key.
            sys.setswitchinterval(_SWITCH_SECONDS)
            gc.collect()
            gc.freeze()  # what was imported stays: each full collection would stop all requests to look at it
            await services.call(on_listening, f"http://{address}:{actual_port}/v1")
            await ends.wait()
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _listening(server: web.Server, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
    """Accept connections; yields address and port."""
    make = connection_factory(server, most_connections())
    try:
        sockets = await asyncio.get_running_loop().create_server(make, host, port, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"{host}:{port} is in use: give another --port") from None
        raise UsageError(f"{host}:{port}: {_reason(error)}; give another --host or --port") from None
    watch = asyncio.create_task(abort_unread(server))
    try:
        yield sockets.sockets[0].getsockname()[:2]
    finally:
        watch.cancel()
        sockets.close()


def _reason(error: OSError) -> str | None:
    is_of_a_name = isinstance(error, socket.gaierror)  # its numbers are not those of the system
    return error.strerror if is_of_a_name or not error.errno else os.strerror(error.errno)
