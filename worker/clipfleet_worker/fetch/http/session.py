"""Sessions for addresses that others choose: guarded, metered, without cookies, proxies and credentials."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import partial

import aiohttp
from aiohttp.abc import AbstractResolver

from clipfleet import __version__
from clipfleet_worker.fetch.http.address_guard import AddressGuard
from clipfleet_worker.fetch.http.metered_sockets import MeteredSockets
from clipfleet_worker.fetch.http.robots import USER_AGENT

_DNS_CACHE_SECONDS = 60
_DNS_CACHE_NAMES = 10_000
_KEEP_ALIVE_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """What a connection may cost."""

    connect_timeout_seconds: float  # TCP and TLS, per address
    idle_read_timeout_seconds: float  # longest silence of a server
    max_header_bytes: int  # longest header line
    keep_alive_seconds: float = _KEEP_ALIVE_SECONDS  # of an idle connection


def open_session(
    guard: AddressGuard,
    resolver: AbstractResolver,
    sockets: MeteredSockets,
    limits: SessionLimits,
    *,
    contact: str = "",
    tls: ssl.SSLContext | None = None,
) -> aiohttp.ClientSession:
    """Open a session in the running loop. Callers limit connections, and time and bytes of each response.

    Args:
        guard: checks every address before a connection to it is made.
        resolver: turns names into addresses; should drop those that the guard refuses.
        sockets: count the bytes that arrive.
        limits: of each connection.
        contact: the operator's address or URL; part of the User-Agent.
        tls: to trust other certificates than the system's.
    """
    words = " ".join(contact.split())
    suffix = f" (+{words})" if words else ""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,  # a wait inside aiohttp would count as the time of the request
            ssl=True if tls is None else tls,
            resolver=resolver,
            ttl_dns_cache=_DNS_CACHE_SECONDS,
            dns_cache_max_size=_DNS_CACHE_NAMES,
            keepalive_timeout=limits.keep_alive_seconds,
            socket_factory=partial(guard.open_socket, make_socket=sockets.make),
        ),
        headers={"User-Agent": f"{USER_AGENT}/{__version__}{suffix}", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,  # callers inflate, with a cap, or read nothing
        timeout=aiohttp.ClientTimeout(
            total=None,  # callers limit the time
            sock_connect=limits.connect_timeout_seconds,
            sock_read=limits.idle_read_timeout_seconds,
        ),
        max_line_size=limits.max_header_bytes,
        max_field_size=limits.max_header_bytes,
    )
