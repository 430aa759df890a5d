"""Host names to addresses: in its own threads, without the addresses that the guard refuses."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from aiohttp.abc import AbstractResolver, ResolveResult

from clipfleet_worker.fetch.http.address_guard import AddressGuard, AddressRefusedError
from clipfleet_worker.process.counts import CacheCounts
from clipfleet_worker.process.shortages import LenientThreadPool

# A dead name server blocks a look-up and its thread for many seconds, even after a cancellation: so there are
# enough threads for other names meanwhile.
_THREADS = 256
_REFUSAL_SECONDS = 10.0  # before a name that does not exist or is refused is looked up again
_REMEMBERED_NAMES = 10_000
_NO_ADDRESS = frozenset({None, socket.EAI_NONAME, socket.EAI_NODATA})  # None: refused, or an empty answer


class SystemResolver(AbstractResolver):
    """The system's `getaddrinfo` (hosts file, search domains, nsswitch)."""

    def __init__(self) -> None:
        self._threads = LenientThreadPool(_THREADS, thread_name_prefix="clipfleet-dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """See aiohttp; OSError if there is no such name."""
        look_up = partial(
            socket.getaddrinfo,
            host,
            port,
            family=family,
            type=socket.SOCK_STREAM,
            flags=socket.AI_ADDRCONFIG,  # no IPv6 answers where this machine has no IPv6
        )
        answers = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=answer_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for answer_family, _, protocol, _, address in answers
        ]

    async def close(self) -> None:
        """Cancel waiting look-ups; running ones end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True)
class GuardedResolver(AbstractResolver):
    """Drops the addresses that the guard refuses; a name that also has a public address then works.

    This is not the protection itself, since aiohttp resolves no numeric hosts: `AddressGuard.open_socket`
    checks all addresses. aiohttp caches good answers; this class caches failed names for a while, or a dead
    host with many images would cost a look-up for each.
    """

    resolver: AbstractResolver
    guard: AddressGuard
    monotonic: Callable[[], float] = time.monotonic
    requests: CacheCounts = field(default_factory=CacheCounts)  # of names without an allowed address
    _refused: OrderedDict[tuple[str, int], tuple[float, OSError]] = field(default_factory=OrderedDict)  # ends

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """See aiohttp; `AddressRefusedError` if no answer is left."""
        until, remembered = self._refused.get((host, port), (0.0, OSError()))
        self.requests.note(hit=self.monotonic() < until)
        if self.monotonic() < until:
            raise type(remembered)(*remembered.args)  # a new one, since each gets its own traceback
        try:
            return await self._resolve(host, port, family)
        except OSError as error:
            if error.errno in _NO_ADDRESS:
                self._remember(host, port, type(error)(*error.args))
            raise

    def _remember(self, host: str, port: int, error: OSError) -> None:
        self._refused[host, port] = self.monotonic() + _REFUSAL_SECONDS, error
        self._refused.move_to_end((host, port))
        if len(self._refused) > _REMEMBERED_NAMES:
            self._refused.popitem(last=False)

    async def _resolve(self, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
        try:
            answers = await self.resolver.resolve(host, port, family)
        except UnicodeError:  # a label that Python's IDNA codec cannot encode
            raise OSError("no such name") from None
        allowed = []
        refusal = OSError("the name has no address")
        for answer in answers:
            try:
                self.guard.check(answer["host"], port)
            except AddressRefusedError as error:
                refusal = error
            else:
                allowed.append(answer)
        if not allowed:
            raise refusal
        return allowed

    async def close(self) -> None:
        """Close the resolver behind this one."""
        await self.resolver.close()
