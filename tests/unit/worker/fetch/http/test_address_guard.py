"""The guard decides about addresses; names and redirects are in tests/integration/test_fetch_http.py."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest

from clipfleet_worker.fetch.http.address_guard import AddressGuard, AddressRefusedError

PUBLIC = (
    "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 93.184.215.14 100.63.255.255 100.128.0.0 126.255.255.255 "
    "128.0.0.0 168.63.129.15 169.253.255.255 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 "
    "198.17.255.255 198.20.0.0 223.255.255.255 2606:4700:4700::1111 2001:4860:4860::8888 "
    "2a00:1450:4001:82b::200e 2620:fe::fe 2620:fe::5efe:0:a00:1 ::ffff:8.8.8.8 ::ffff:808:808 "
    "64:ff9b::8.8.8.8"  # a public IPv4 host, seen from an IPv6-only network
)

REFUSED = {
    "this network": "0.0.0.0 0.1.2.3",
    "private": "10.0.0.0 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 192.168.255.255",
    "shared": "100.64.0.1 100.127.255.255",
    "loopback": "127.0.0.1 127.255.255.254",
    "link-local": "169.254.0.1",
    # Of most clouds, Azure, Oracle, Alibaba, AWS and Google.
    "metadata services": "169.254.169.254 169.254.170.2 168.63.129.16 192.0.0.192 192.0.0.8 100.100.100.200 "
    "fd00:ec2::254 fd20:ce::254",
    "documentation, benchmarks, relays": "192.0.2.1 192.88.99.1 198.18.0.1 198.19.255.255 198.51.100.7 "
    "203.0.113.7",
    "multicast, reserved, broadcast": "224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255",
    "IPv6: unspecified, loopback, local, multicast": ":: ::1 fc00::1 fe80::1 fec0::1 ff02::1 ff0e::1",
    "IPv6: documentation, discard, benchmark, ORCHID, segment routing": (
        "2001:db8::1 3fff::1 100::1 2001:2::1 2001:20::1 5f00::1"
    ),
    "IPv4-mapped": "::ffff:127.0.0.1 ::ffff:7f00:1 0:0:0:0:0:ffff:10.0.0.1 ::ffff:169.254.169.254 "
    "::ffff:192.0.0.192",
    "IPv4-compatible, whatever it embeds": "::7f00:1 ::127.0.0.1 ::8.8.8.8",
    "IPv4-translated": "::ffff:0:127.0.0.1",
    "NAT64": "64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b::10.1.2.3 64:ff9b::168.63.129.16 64:ff9b:1::1 "
    "64:ff9b:1:808:8:800::",
    "6to4": "2002:7f00:1:: 2002:a9fe:a9fe::1 2002:808:808::1",
    "Teredo": "2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "ISATAP": "2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:a00:1 2606:4700::5efe:8.8.8.8",
    "zones": "fe80::1%eth0 fe80::1%25eth0 ::1%lo 2606:4700:4700::1111%1",
}

NOT_CANONICAL = (
    "localhost example.com 127.1 127.0.1 2130706433 0x7f000001 0x7f.0.0.1 017700000001 0177.0.0.1 127.0.0.01 "
    "127.0.0.1. 127.0.0.256 ①②⑦.⓪.⓪.① [::1] ::1:: 1.2.3.4/32"
)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public_addresses_pass_on_the_usual_ports(address: str) -> None:
    for port in (80, 443):
        AddressGuard().check(address, port)


@pytest.mark.parametrize("kind", REFUSED)
def test_everything_else_is_refused(kind: str) -> None:
    for address in REFUSED[kind].split():
        with pytest.raises(AddressRefusedError, match="not a public address"):
            AddressGuard().check(address, 80)


@pytest.mark.parametrize("address", ["", " ", "127.0.0.1 ", *NOT_CANONICAL.split()])
def test_what_is_not_a_canonical_number_is_refused(address: str) -> None:
    with pytest.raises(AddressRefusedError, match="not a canonical numeric address"):
        AddressGuard().check(address, 80)


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_no_public_address_is_one_that_python_calls_private(network: str) -> None:
    """Python's own table is another opinion: whatever it calls not global, the guard refuses too."""
    guard = AddressGuard()
    space = ipaddress.ip_network(network)
    step = space.num_addresses // 4099  # a prime, to land on different bits
    for number in range(4099):
        address = space[number * step]
        if not address.is_global:
            with pytest.raises(AddressRefusedError):
                guard.check(str(address), 80)


@pytest.mark.parametrize("port", [0, 1, 22, 25, 79, 81, 442, 444, 6379, 8080, 65535])
def test_other_ports_of_public_addresses_are_refused(port: int) -> None:
    with pytest.raises(AddressRefusedError, match=f"port {port} is neither"):
        AddressGuard().check("8.8.8.8", port)


def test_allowed_ports_come_on_top() -> None:
    guard = AddressGuard(allow_ports=frozenset({8080}))
    for port in (80, 443, 8080):
        guard.check("8.8.8.8", port)
    with pytest.raises(AddressRefusedError):
        guard.check("8.8.8.8", 8081)
    with pytest.raises(AddressRefusedError, match="loopback"):
        guard.check("127.0.0.1", 8080)


@pytest.mark.parametrize(
    ("network", "address", "passes"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),  # the kernel connects to the same place
        ("10.0.0.0/8", "64:ff9b::10.1.2.3", False),  # another place: behind a NAT64 gateway
        ("10.0.0.0/8", "2002:a01:203::", False),
        ("10.0.0.0/8", "192.168.0.1", False),
        ("10.0.0.0/8", "127.0.0.1", False),
        ("192.168.7.0/24", "192.168.7.9", True),
        ("192.168.7.0/24", "192.168.8.9", False),
        ("10.1.2.3/32", "10.1.2.4", False),
        ("127.0.0.1/32", "127.0.0.2", False),
        ("fd12:3456::/32", "fd12:3456::1", True),
        ("fd12:3456::/32", "fd12:3457::1", False),
        ("::1/128", "::1", True),
        ("::1/128", "127.0.0.1", False),
        ("64:ff9b:1::/48", "64:ff9b:1::1", True),
        ("8.8.8.0/24", "8.8.8.8", True),  # a public network, for its ports
    ],
)
@pytest.mark.parametrize("port", [80, 6379])
def test_allowed_networks_open_themselves_only(network: str, address: str, passes: bool, port: int) -> None:
    guard = AddressGuard((ipaddress.ip_network("172.16.0.0/12"), ipaddress.ip_network(network)))
    with nullcontext() if passes else pytest.raises(AddressRefusedError):
        guard.check(address, port)


def test_a_network_that_is_allowed_opens_no_ports_of_another() -> None:
    with pytest.raises(AddressRefusedError, match="port 9000"):
        AddressGuard((ipaddress.ip_network("8.8.8.0/24"),)).check("8.8.9.8", 9000)


def test_the_message_names_the_way_out_and_not_the_address() -> None:
    with pytest.raises(AddressRefusedError) as raised:
        AddressGuard().check("10.20.30.40", 80)
    assert "CLIPFLEET_ALLOW_PRIVATE" in str(raised.value)
    assert "10.20" not in str(raised.value)


def test_a_socket_is_made_for_an_allowed_address() -> None:
    info = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("8.8.8.8", 443))
    with AddressGuard().open_socket(info) as opened:
        assert (opened.family, opened.type) == (socket.AF_INET, socket.SOCK_STREAM)


@pytest.mark.parametrize(
    "address", ["127.0.0.1 443", "8.8.8.8 22", "::1 443", "fe80::1 443", "::ffff:127.0.0.1 443"]
)
def test_no_socket_is_made_for_a_refused_address(address: str) -> None:
    host, port = address.split()
    made = MagicMock()
    family, rest = (socket.AF_INET6, (0, 2)) if ":" in host else (socket.AF_INET, ())

    with pytest.raises(AddressRefusedError):
        AddressGuard().open_socket((family, socket.SOCK_STREAM, 0, "", (host, int(port), *rest)), made)

    made.assert_not_called()
