"""Names without a good answer: how long they are remembered, and which troubles are not."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from clipfleet_worker.fetch.http import resolver as http_resolver
from clipfleet_worker.fetch.http.address_guard import AddressGuard, AddressRefusedError
from clipfleet_worker.fetch.http.resolver import GuardedResolver
from tests.support.doubles import Clock


class Names(AbstractResolver):
    """Answers every question alike: with an address or an error."""

    def __init__(self, answer: str | OSError) -> None:
        self.answer = answer
        self.questions = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.questions += 1
        if isinstance(self.answer, OSError):
            raise self.answer
        return [ResolveResult(hostname=host, host=self.answer, port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None: ...


def ask(resolver: GuardedResolver, host: str = "h.test", port: int = 80) -> str | type[OSError]:
    try:
        return asyncio.run(resolver.resolve(host, port))[0]["host"]
    except OSError as error:
        return type(error)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (socket.gaierror(socket.EAI_NONAME, "no such name"), socket.gaierror),
        (socket.gaierror(socket.EAI_NODATA, "no address"), socket.gaierror),
        ("10.0.0.1", AddressRefusedError),
    ],
)
def test_no_good_answer_is_remembered_for_a_while(answer: str | OSError, expected: type[OSError]) -> None:
    names, clock = Names(answer), Clock()
    resolver = GuardedResolver(names, AddressGuard(), monotonic=clock)
    assert [ask(resolver) for _ in range(3)] == [expected] * 3
    assert names.questions == 1
    clock.now += 10
    names.answer = "8.8.8.8"
    assert ask(resolver) == "8.8.8.8"


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_AGAIN, "later"), OSError(24, "too many files")])
def test_passing_troubles_are_not_remembered(error: OSError) -> None:
    names = Names(error)
    resolver = GuardedResolver(names, AddressGuard())
    assert ask(resolver) is type(error)
    names.answer = "8.8.8.8"
    assert ask(resolver) == "8.8.8.8"


def test_another_port_or_name_is_another_question() -> None:
    resolver = GuardedResolver(Names("8.8.8.8"), AddressGuard())
    assert ask(resolver, port=8080) is AddressRefusedError
    assert ask(resolver, port=443) == "8.8.8.8"
    assert ask(resolver, host="other.test") == "8.8.8.8"


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_resolver, "_REMEMBERED_NAMES", 3)
    names = Names("10.0.0.1")
    resolver = GuardedResolver(names, AddressGuard())
    for number in range(5):
        ask(resolver, host=f"h{number}.test")
    ask(resolver, host="h4.test")
    assert names.questions == 5
    ask(resolver, host="h0.test")
    assert names.questions == 6
