"""A TCP proxy on loopback that breaks connections on purpose, for tests and chaos.

It knows no protocol. One thread of its own carries all connections; its methods may be called from any other
thread, and what they did has happened when they return.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

HOST = "127.0.0.1"
_READ_BYTES = 65_536
_BACKLOG = 512
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: a close sends RST instead of FIN

Direction = Literal["server", "client"]  # towards whom bytes flow
T = TypeVar("T")


@dataclass(eq=False)
class _Connection:
    """A client's connection and, unless it waits for a thaw, the one to the server."""

    client: asyncio.StreamWriter
    flows: asyncio.Event = field(default_factory=asyncio.Event)
    server: asyncio.StreamWriter | None = None

    def reset(self) -> None:
        """RST to both ends; what was under way is lost."""
        for writer in (self.client, self.server):
            if writer is not None:
                connection: socket.socket = writer.get_extra_info("socket")
                if connection.fileno() >= 0:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()


@dataclass
class _Cut:
    """Bytes that may still pass in a direction; the connection that carries the last of them is reset."""

    towards: Direction
    left: int


class Proxy:
    """Carries connections from a port of its own to a server's port. Usable as a context manager.

    Args:
        target_port: where the server listens on 127.0.0.1; it need not be there yet.
        port: to listen on; 0 picks a free one.
    """

    def __init__(self, target_port: int, *, port: int = 0) -> None:
        self._target_port = target_port
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listener: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._freezes_new = False
        self._cut: _Cut | None = None
        self._accepted = 0
        self._passed = {"server": 0, "client": 0}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port it listens on, known once it was started; the same ever after."""
        return self._port

    @property
    def accepted(self) -> int:
        """Connections that have come so far."""
        return self._accepted

    @property
    def open_connections(self) -> int:
        """Connections that are carried now, frozen ones included."""
        return len(self._connections)

    def passed_bytes(self, towards: Direction) -> int:
        """Bytes that went by in a direction so far."""
        return self._passed[towards]

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        self._call(self._listen())

    def stop(self) -> None:
        """Reset everything and end the thread. Idempotent."""
        if self._loop.is_closed():
            return
        if self._thread.is_alive():
            self._call(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def freeze(self, *, new: bool = False) -> None:
        """Silence all connections that are open: nothing passes, and neither end is closed.

        For ever, as after a cable was cut, unless `thaw` is called. Bytes that are sent meanwhile are kept.

        Args:
            new: also those that come later; they are accepted, and nothing answers them.
        """
        self._do(lambda: self._freeze(new))

    def thaw(self) -> None:
        """Have all frozen connections go on where they were."""
        self._do(self._thaw)

    def reset(self) -> int:
        """Send RST to both ends of all connections; returns how many there were."""
        return self._do(self._reset)

    def cut_after(self, count: int, *, towards: Direction) -> None:
        """Let so many more bytes pass in a direction, of all connections together, then reset the connection
        that carried the last of them: in the middle of a command, or of an answer. Happens once.
        """
        self._do(lambda: setattr(self, "_cut", _Cut(towards, count)))

    @property
    def is_cut(self) -> bool:
        """Whether no cut is pending any more."""
        return self._cut is None

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay. Idempotent."""
        self._call(self._close_listener())

    def admit(self) -> None:
        """Undo `refuse`. Idempotent."""
        self._call(self._listen())

    def retarget(self, target_port: int) -> None:
        """Carry new connections to another port; those that are open stay with the old one."""
        self._do(lambda: setattr(self, "_target_port", target_port))

    # --- in the thread of the loop ---

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _do(self, action: Callable[[], T]) -> T:
        async def act() -> T:
            return action()

        return self._call(act())

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, HOST, self._port, backlog=_BACKLOG)
            self._port = self._listener.sockets[0].getsockname()[1]

    async def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _end(self) -> None:
        await self._close_listener()
        self._reset()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the loop's next turn

    def _freeze(self, new: bool) -> None:
        self._freezes_new = new
        for connection in self._connections:
            connection.flows.clear()

    def _thaw(self) -> None:
        self._freezes_new = False
        for connection in self._connections:
            connection.flows.set()

    def _reset(self) -> int:
        connections = list(self._connections)
        for connection in connections:
            connection.reset()
            connection.flows.set()  # so that waiting tasks see the end
        return len(connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted += 1
        connection = _Connection(writer)
        if not self._freezes_new:
            connection.flows.set()
        self._connections.add(connection)
        task = self._loop.create_task(self._carry(connection, reader))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, connection: _Connection, from_client: asyncio.StreamReader) -> None:
        try:
            await connection.flows.wait()
            from_server, connection.server = await asyncio.open_connection(HOST, self._target_port)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(connection, from_client, connection.server, "server"))
                both.create_task(self._pump(connection, from_server, connection.client, "client"))
            for writer in (connection.client, connection.server):
                writer.close()
        except* OSError:  # the server is not there, or one of the ends was reset: so is the other
            connection.reset()
        except* asyncio.CancelledError:
            connection.reset()
            raise
        finally:
            self._connections.discard(connection)

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        towards: Direction,
    ) -> None:
        while data := await self._read(connection, reader):
            whole = len(data)
            data = self._before_cut(data, towards)
            self._passed[towards] += len(data)
            writer.write(data)
            await writer.drain()
            if len(data) < whole or self._is_cut_here(towards):
                self._cut = None
                raise ConnectionResetError("cut")
        if writer.can_write_eof():
            writer.write_eof()

    async def _read(self, connection: _Connection, reader: asyncio.StreamReader) -> bytes:
        """What comes, an end and a reset included; of a frozen connection only after the thaw."""
        try:
            return await reader.read(_READ_BYTES)
        finally:
            await connection.flows.wait()

    def _before_cut(self, data: bytes, towards: Direction) -> bytes:
        if self._cut is None or self._cut.towards != towards:
            return data
        data = data[: self._cut.left]
        self._cut.left -= len(data)
        return data

    def _is_cut_here(self, towards: Direction) -> bool:
        return self._cut is not None and self._cut.towards == towards and self._cut.left <= 0
