"""Which fetcher gets an item, and what is refused."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

import pytest

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch import scheme_of
from clipfleet_worker.fetch.routes import Routes
from tests.support.scenarios import in_loop


class Place:
    """A fetcher that answers its name, and notes what becomes of it."""

    def __init__(self, name: str, diary: list[str] | None = None, *, breaks: bool = False) -> None:
        self.name, self.diary, self.breaks = name, [] if diary is None else diary, breaks

    def _note(self, event: str) -> None:
        self.diary.append(f"{event} {self.name}")
        if self.breaks:
            raise RuntimeError(self.name)

    async def start(self) -> None:
        self._note("start")

    async def close(self) -> None:
        self._note("close")

    async def fetch(self, uri: str) -> bytes:
        return self.read(uri)

    def read(self, uri: str) -> bytes:
        return f"{self.name} {uri}".encode()


def routes() -> Routes:
    web = Place("web")
    return Routes(
        {"http": web.fetch, "https": web.fetch, "s3": Place("store").fetch},
        {"file": Place("disk").read, "data": Place("inline").read},
    )


@pytest.mark.parametrize(
    ("uri", "scheme", "place"),
    [
        ("http://a/b", "http", "web"),
        ("HTTPS://a/b", "https", "web"),
        ("S3://a/b", "s3", "store"),
        ("/data/x.jpg", "file", "disk"),
        ("/data/http://x", "file", "disk"),
        ("file:///data/x.jpg", "file", "disk"),
        ("File:/data/x.jpg", "file", "disk"),
        ("data:image/png;base64,AA==", "data", "inline"),
    ],
)
def test_a_scheme_leads_to_its_fetcher(uri: str, scheme: str, place: str) -> None:
    found = routes()

    assert scheme_of(uri) == scheme
    data = found.read(uri) if found.is_local(uri) else asyncio.run(found.fetch(uri))
    assert data == f"{place} {uri}".encode()


@pytest.mark.parametrize(
    "uri", ["ftp://a/b", "gopher://a", "javascript:alert(1)", "C:\\x.jpg", "s3+x://a", "x" * 99 + ":"]
)
def test_other_schemes_are_refused(uri: str) -> None:
    with pytest.raises(ItemFailure) as raised:
        routes().is_local(uri)
    assert raised.value.error.code is ErrorCode.SCHEME_REFUSED
    scheme = uri.partition(":")[0][:20].lower()
    said = f"unsupported URL scheme {scheme!r}; use http, https, s3, data or file"
    assert raised.value.error.detail == said


@pytest.mark.parametrize("uri", ["", "x.jpg", "./x", " http://a", "://a", "1http://a", "é:x"])
def test_no_scheme_is_a_bad_uri(uri: str) -> None:
    assert scheme_of(uri) == ""
    with pytest.raises(ItemFailure) as raised:
        routes().is_local(uri)
    assert raised.value.error.code is ErrorCode.BAD_URI


@pytest.mark.parametrize("breaks", [False, True])
@in_loop
async def test_each_fetcher_is_started_and_closed_once_even_if_one_cannot_start(breaks: bool) -> None:
    diary: list[str] = []
    places = Routes({}, {}, [Place("web", diary), Place("store", diary, breaks=breaks)])

    with pytest.raises(RuntimeError) if breaks else nullcontext():
        await places.start()
        await places.close()
        await places.close()

    assert diary == ["start web", "start store", "close store", "close web"]
