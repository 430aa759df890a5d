"""Which network addresses a worker may connect to on behalf of an untrusted URL.

The final address is checked when its socket is made: whatever notation, DNS answer or redirect led there, no
second look-up happens in between. The tables are spelled out (IANA's special-purpose registries plus cloud
metadata services) because `ipaddress.is_global` differs between Python versions and allows multicast, NAT64
and some metadata addresses. It cannot know public addresses that lead back into the operator's network (this
machine's own, or a NAT64 prefix of the operator's choice): use a firewall as well.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable

from aiohttp import AddrInfoType

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DEFAULT_PORTS = frozenset({80, 443})

_REFUSED_V4 = {
    ipaddress.IPv4Network(network): kind
    for network, kind in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared (carrier NAT)"),  # holds Alibaba's metadata service 100.100.100.200
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "cloud metadata"),  # Azure's wire server, inside a public range
        ("169.254.0.0/16", "link-local"),  # holds the metadata service of most clouds
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignment"),  # holds Oracle's metadata service 192.0.0.192
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmark"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved or broadcast"),
    )
}
# All public unicast IPv6 lies in here. Outside are, among others: ::1, IPv4-compatible and -translated
# addresses, fc00::/7, fe80::/10, fec0::/10, ff00::/8, and 64:ff9b:1::/48, whose embedded IPv4 address has no
# fixed place.
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = {
    ipaddress.IPv6Network(network): kind
    for network, kind in (
        ("2001::/23", "protocol assignment"),  # holds Teredo, which embeds an IPv4 address, and ORCHID
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),  # embeds an IPv4 address; retired by RFC 7526, no image lives there
        ("3fff::/20", "documentation"),
    )
}
# IPv6-only networks reach public IPv4 hosts through this prefix, so it is judged by the address it embeds.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# ISATAP's interface identifiers (RFC 5214) embed an IPv4 address below any prefix, public ones too: its
# router would carry the packet to that address inside its own network.
_ISATAP_IDENTIFIERS = frozenset({0x0000_5EFE, 0x0200_5EFE})


class AddressRefusedError(OSError):
    """The guard does not allow a connection; the message does not reveal what a name resolved to."""


class AddressGuard:
    """Allows or refuses addresses and ports.

    Args:
        allow_private: networks that are allowed although they are not public, on any port.
        allow_ports: ports of public addresses that are allowed besides 80 and 443.
    """

    def __init__(
        self, allow_private: Iterable[Network] = (), allow_ports: Iterable[int] = frozenset()
    ) -> None:
        self._allow_private = tuple(allow_private)
        self._ports = _DEFAULT_PORTS | frozenset(allow_ports)

    def check(self, host: str, port: int) -> None:
        """Return if a connection to this address is allowed.

        Args:
            host: a numeric address, as for `socket.connect`; names are refused.
            port: the port of the connection.

        Raises:
            AddressRefusedError: it is not.
        """
        address = _parsed(host)
        if any(address in network for network in self._allow_private):
            return
        kind = _refused_kind(address)
        if kind is not None:
            raise AddressRefusedError(f"not a public address ({kind}), nor one of CLIPFLEET_ALLOW_PRIVATE")
        if port not in self._ports:
            raise AddressRefusedError(f"port {port} is neither 80, 443 nor one of CLIPFLEET_ALLOW_PORTS")

    def open_socket(
        self,
        address_info: AddrInfoType,
        make_socket: Callable[[int, int, int], socket.socket] = socket.socket,
    ) -> socket.socket:
        """A socket for one address; fits `aiohttp.TCPConnector(socket_factory=...)`.

        aiohttp calls it with every address it is about to connect to (each answer for a name, literals, each
        redirect) and connects this very socket to this very address.

        Raises:
            AddressRefusedError: see `check`; no socket was made.
        """
        family, kind, protocol, _, address = address_info
        self.check(str(address[0]), int(address[1]))
        return make_socket(family, kind, protocol)


def _refused_kind(address: Address) -> str | None:
    """`private`, `loopback` and so on; None for a public address."""
    if isinstance(address, ipaddress.IPv4Address):
        return next((kind for network, kind in _REFUSED_V4.items() if address in network), None)
    if address in _NAT64:
        return _refused_kind(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address not in _PUBLIC_V6:
        return "IPv6 outside the public range"
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP_IDENTIFIERS:
        return "ISATAP"
    return next((kind for network, kind in _REFUSED_V6.items() if address in network), None)


def _parsed(host: str) -> Address:
    if "%" in host:
        # A zone names an interface of this machine; only link-local addresses need one.
        raise AddressRefusedError("not a public address (IPv6 zone)")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise AddressRefusedError("not a canonical numeric address") from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        # The kernel sends ::ffff:10.0.0.1 to 10.0.0.1, so both are the same address for every rule.
        return address.ipv4_mapped
    return address
