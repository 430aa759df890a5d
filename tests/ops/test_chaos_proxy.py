"""The proxy of the chaos tests, with plain sockets at both ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from ops.chaos.proxy import HOST, Proxy
from tests.support.waiting import wait_until

SILENCE_SECONDS = 0.3  # that nothing comes can only be seen by waiting for it


class Peer:
    """The server's end: a listener, and the connections that came through the proxy."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self._listener.settimeout(60)
        self._opened = [self._listener]

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def accept(self) -> socket.socket:
        connection, _ = self._listener.accept()
        return self.note(connection)

    def connect(self, proxy: Proxy) -> socket.socket:
        """A client's end."""
        return self.note(socket.create_connection((HOST, proxy.port), timeout=60))

    def note(self, connection: socket.socket) -> socket.socket:
        connection.settimeout(60)
        self._opened.append(connection)
        return connection

    def close(self) -> None:
        for one in self._opened:
            one.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def proxy(peer: Peer) -> Iterator[Proxy]:
    with Proxy(peer.port) as proxy:
        yield proxy


def pair(peer: Peer, proxy: Proxy) -> tuple[socket.socket, socket.socket]:
    """A client and the server's end of its connection, which works."""
    client = peer.connect(proxy)
    server = peer.accept()
    assert passes(client, server)
    return client, server


def passes(sender: socket.socket, receiver: socket.socket) -> bool:
    sender.sendall(b"word")
    return read_exactly(receiver, 4) == b"word"


def read_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := connection.recv(count - len(data))):
        data += more
    return data


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(SILENCE_SECONDS)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(60)
    return False


def is_reset(connection: socket.socket) -> bool:
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        return True
    return False


def is_reset_or_ended(connection: socket.socket) -> bool:
    with suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def read_at_most(connection: socket.socket) -> bytes:
    """All that comes before the end or a reset."""
    data = b""
    with suppress(ConnectionResetError):
        while more := connection.recv(64):
            data += more
    return data


Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends(peer: Peer, proxy: Proxy) -> Ends:
    return pair(peer, proxy)


class TestCarrying:
    def test_bytes_pass_both_ways_and_are_counted(self, proxy: Proxy, ends: Ends) -> None:
        client, server = ends

        assert passes(server, client)
        assert (proxy.passed_bytes("server"), proxy.passed_bytes("client")) == (4, 4)
        assert (proxy.accepted, proxy.open_connections) == (1, 1)

    def test_one_end_may_have_sent_all_and_still_receive(self, proxy: Proxy, ends: Ends) -> None:
        client, server = ends
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        assert passes(server, client)

        server.close()

        assert client.recv(1) == b""
        wait_until(lambda: proxy.open_connections == 0, "the connection is forgotten")

    def test_a_server_that_is_not_there_resets_the_client(self, peer: Peer) -> None:
        with socket.create_server((HOST, 0)) as listener:
            nobody: int = listener.getsockname()[1]
        with Proxy(nobody) as proxy:
            with suppress(ConnectionResetError):  # it may come before `connect` has returned
                assert is_reset(peer.connect(proxy))
            wait_until(lambda: (proxy.accepted, proxy.open_connections) == (1, 0), "the client is forgotten")

    def test_stopping_ends_everything(self, peer: Peer, proxy: Proxy, ends: Ends) -> None:
        proxy.stop()
        proxy.stop()

        assert all(is_reset(end) for end in ends)
        with pytest.raises(ConnectionRefusedError):
            peer.connect(proxy)


class TestFreezing:
    def test_open_connections_go_silent_until_the_thaw(self, peer: Peer, proxy: Proxy, ends: Ends) -> None:
        client, server = ends
        proxy.freeze()
        client.sendall(b"kept")
        server.sendall(b"kept")
        assert is_silent(server) and is_silent(client)
        assert pair(peer, proxy)  # new ones work

        proxy.thaw()

        assert read_exactly(server, 4) == read_exactly(client, 4) == b"kept"
        assert passes(server, client)

    @pytest.mark.parametrize("end", ["FIN", "RST"])
    def test_no_end_is_passed_on_until_the_thaw(self, proxy: Proxy, ends: Ends, end: str) -> None:
        client, server = ends
        proxy.freeze()
        if end == "RST":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        assert is_silent(server)

        proxy.thaw()

        assert is_reset_or_ended(server)

    def test_new_ones_too_until_the_thaw(self, peer: Peer, proxy: Proxy) -> None:
        proxy.freeze(new=True)
        client = peer.connect(proxy)
        client.sendall(b"kept")
        assert is_silent(client)

        proxy.thaw()

        assert read_exactly(peer.accept(), 4) == b"kept"
        assert pair(peer, proxy)


class TestBreaking:
    @pytest.mark.parametrize("frozen", [False, True])
    def test_a_reset_reaches_both_ends_of_all(self, peer: Peer, proxy: Proxy, frozen: bool) -> None:
        ends = [end for _ in range(3) for end in pair(peer, proxy)]
        if frozen:
            proxy.freeze()

        assert proxy.reset() == 3

        assert all(is_reset(end) for end in ends)
        wait_until(lambda: proxy.open_connections == 0, "the connections are forgotten")
        assert pair(peer, proxy)

    @pytest.mark.parametrize("towards", ["server", "client"])
    def test_a_cut_in_mid_command(self, peer: Peer, proxy: Proxy, ends: Ends, towards: str) -> None:
        sender, receiver = ends if towards == "server" else reversed(ends)

        proxy.cut_after(6, towards="server" if towards == "server" else "client")
        assert not proxy.is_cut
        assert passes(receiver, sender)
        assert passes(sender, receiver)
        sender.sendall(b"in the middle")

        assert read_at_most(receiver) in (b"in", b"")  # a reset may overtake what was sent
        assert is_reset_or_ended(sender)
        assert proxy.is_cut
        assert pair(peer, proxy)

    def test_a_cut_after_the_last_byte_of_a_command(self, proxy: Proxy, ends: Ends) -> None:
        client, server = ends
        before = proxy.passed_bytes("server")

        proxy.cut_after(4, towards="server")
        client.sendall(b"word")

        assert is_reset(client)
        assert read_at_most(server) in (b"word", b"")
        assert proxy.passed_bytes("server") == before + 4

    def test_refused_and_admitted_again(self, peer: Peer, proxy: Proxy, ends: Ends) -> None:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            peer.connect(proxy)
        assert passes(*ends)
        proxy.admit()

        assert pair(peer, proxy)

    def test_another_server_from_now_on(self, peer: Peer, proxy: Proxy, ends: Ends) -> None:
        other = Peer()

        proxy.retarget(other.port)

        client = peer.connect(proxy)
        assert passes(client, other.accept())
        assert passes(*ends)
        other.close()
