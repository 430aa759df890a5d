"""Sockets that count: what is too much, when counting starts anew, and that none is counted twice."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from clipfleet_worker.fetch.http.metered_sockets import FloodError, MeteredSocket, MeteredSockets

FREE, FREE_OF_TLS = 320 << 10, 384 << 10
PIECE = 64 << 10


class Pair:
    """A metered socket and the other end of its connection."""

    def __init__(self, sockets: MeteredSockets) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.metered = sockets.make(socket.AF_INET, socket.SOCK_STREAM, 0)
            self.metered.connect(listener.getsockname())
            self.other, _ = listener.accept()

    def receive(self, count: int, *, tls: bool = False) -> int:
        return self.metered.recv_into(bytearray(count)) if tls else len(self.metered.recv(count))

    def bring(self, count: int, *, tls: bool = False) -> None:
        """Let so many bytes arrive, in pieces."""
        while count:
            piece = min(count, PIECE)
            self.other.sendall(bytes(piece))
            count -= piece
            while piece:
                piece -= self.receive(piece, tls=tls)


@pytest.fixture
def sockets() -> MeteredSockets:
    return MeteredSockets()


@pytest.fixture
def pair(sockets: MeteredSockets) -> Iterator[Pair]:
    pair = Pair(sockets)
    yield pair
    pair.metered.close()
    pair.other.close()


def test_the_free_bytes_and_not_one_more(pair: Pair) -> None:
    pair.bring(FREE)
    assert not pair.metered.is_flooded
    with pytest.raises(FloodError):
        pair.bring(1)
    assert pair.metered.is_flooded
    assert pair.metered.is_broken


def test_tls_reads_further_ahead(pair: Pair) -> None:
    pair.bring(FREE + FREE_OF_TLS, tls=True)
    with pytest.raises(FloodError):
        pair.bring(1, tls=True)


def test_each_byte_of_a_body_allows_two(pair: Pair) -> None:
    for _ in range(10):
        pair.bring(FREE)
        pair.metered.allow(FREE // 2)
    with pytest.raises(FloodError):
        pair.bring(FREE + 1)


START_ANEW: dict[str, Callable[[MeteredSocket], object]] = {
    "send": lambda metered: metered.send(b"GET"),
    "sendmsg": lambda metered: metered.sendmsg([b"GET"]),
    "start_anew": lambda metered: metered.start_anew(),
}


@pytest.mark.parametrize("how", START_ANEW)
def test_counting_starts_anew_with_a_request_and_after_an_answer(pair: Pair, how: str) -> None:
    pair.metered.allow(10 * FREE)
    START_ANEW[how](pair.metered)
    with pytest.raises(FloodError):
        pair.bring(FREE + 1)


def test_nothing_there_yet_is_no_break_and_a_reset_is(pair: Pair) -> None:
    pair.metered.setblocking(False)
    with pytest.raises(BlockingIOError):
        pair.metered.recv(1)
    assert not pair.metered.is_broken
    pair.metered.setblocking(True)
    pair.other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    pair.other.close()
    with pytest.raises(ConnectionResetError):
        pair.metered.recv(1)
    assert pair.metered.is_broken


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_one_call_receives_no_more_than_a_piece(pair: Pair, tls: bool) -> None:
    pair.other.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            pair.other.send(bytes(1 << 20))
    assert 0 < pair.receive(1 << 20, tls=tls) <= PIECE


def test_a_socket_closed_twice_does_not_take_another_one_away(sockets: MeteredSockets) -> None:
    first = sockets.make(socket.AF_INET, socket.SOCK_STREAM, 0)
    number = first.number
    first.close()
    second: MeteredSocket = sockets.make(socket.AF_INET, socket.SOCK_STREAM, 0)
    assert second.number == number  # the system gives the lowest free one
    first.close()
    assert len(sockets) == 1
    second.close()
    assert len(sockets) == 0
