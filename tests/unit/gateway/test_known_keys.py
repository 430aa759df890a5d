"""Keys by the tokens of requests: how often the place is asked, whatever clients send."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from clipfleet.errors import OutputUnavailableError
from clipfleet_gateway.keys.key import Key, new_secret, token_of
from clipfleet_gateway.keys.known import KnownKeys
from clipfleet_gateway.keys.ring import KeyRing
from tests.support.doubles import Clock


class Place:
    """A place that counts what it is asked."""

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring
        self.reads: list[str] = []
        self.lists = 0
        self.is_away = False
        self.clock = Clock()
        self.known = KnownKeys(self._find, self._names, monotonic=self.clock)

    async def _find(self, name: str) -> Key | None:
        self.reads.append(name)
        await asyncio.sleep(0)
        return self.ring.find(name)

    async def _names(self) -> list[str]:
        self.lists += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise OutputUnavailableError("away")
        return self.ring.names()

    async def opens(self, *tokens: str) -> list[bool]:
        """Whether each opens something, all asked at once."""
        found = await asyncio.gather(*(self.known.of_token(token) for token in tokens))
        return [key is not None for key in found]


def with_place(ring: KeyRing, run: Callable[[Place], Awaitable[None]]) -> None:
    async def inside() -> None:
        await run(Place(ring))

    asyncio.run(inside())


def guess(name: str) -> str:
    return token_of(name, new_secret())


def test_requests_of_a_key_share_one_read_in_five_seconds(ring: KeyRing) -> None:
    async def run(place: Place) -> None:
        token = ring.add("mine")
        for seconds, reads in ((0.0, 1), (4.9, 1), (0.2, 2)):
            place.clock.now += seconds
            assert await place.opens(*[token] * 50) == [True] * 50
            assert place.reads == ["mine"] * reads
        assert place.lists == 1, "names stay"

    with_place(ring, run)


def test_wrong_secrets_cost_no_read_each(ring: KeyRing) -> None:
    async def run(place: Place) -> None:
        token = ring.add("mine")
        assert await place.opens(*(guess("mine") for _ in range(50)), token) == [False] * 50 + [True]
        assert (place.reads, place.lists) == (["mine"], 1)

    with_place(ring, run)


def test_guessed_names_cost_no_read_and_share_a_list(ring: KeyRing) -> None:
    async def run(place: Place) -> None:
        ring.add("mine")
        guesses = [guess(f"name-{number}") for number in range(50)]
        assert await place.opens(*guesses, "cf-mine", "") == [False] * 52
        assert (place.reads, place.lists) == ([], 1)

    with_place(ring, run)


def test_a_key_opens_as_soon_as_it_is_made(ring: KeyRing) -> None:
    async def run(place: Place) -> None:
        assert await place.opens(guess("mine")) == [False]
        first = asyncio.create_task(place.known.of_token(guess("other")))
        while place.lists < 2:
            await asyncio.sleep(0.01)
        token = ring.add("mine")  # while names are listed
        assert await place.opens(token, guess("nobody")) == [True, False]
        assert await first is None

    with_place(ring, run)


def test_a_place_that_was_away_is_asked_again(ring: KeyRing) -> None:
    async def run(place: Place) -> None:
        token = ring.add("mine")
        place.is_away = True
        with pytest.raises(OutputUnavailableError):
            await place.opens(token)
        place.is_away = False
        assert await place.opens(token) == [True]

    with_place(ring, run)
