"""Images that a store has are asked for by their validators; one that has not changed is not read."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import urlencode

import pytest

from clipfleet.contract.jobs import ErrorCode
from clipfleet.s3.client import connect
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.conditions import NOTHING, UnchangedError, inquire
from clipfleet_worker.fetch.http.fetcher import HttpFetcher
from clipfleet_worker.fetch.http.robots import RobotsTxt
from clipfleet_worker.fetch.s3.boto import S3Limits
from clipfleet_worker.fetch.s3.fetcher import S3Fetcher
from clipfleet_worker.outcomes import Validators
from tests.support.fetching import LIMITS, LOOPBACK, opened
from tests.support.http_site import HttpSite
from tests.support.s3 import S3Bucket

IMAGE = b"picture"
UNCHANGED = "unchanged"
MONDAY = "Mon, 02 Nov 2020 10:00:00 GMT"
ETAG = '"v1"'


async def ask(fetcher: HttpFetcher | S3Fetcher, uri: str, known: Validators = NOTHING) -> tuple[Any, Any]:
    """What comes of one image: bytes, that it is unchanged, or the code of a failure; and its validators."""

    async def one() -> tuple[Any, Any]:
        inquiry = inquire(known)
        try:
            return await fetcher.fetch(uri), inquiry.answer
        except UnchangedError:
            return UNCHANGED, inquiry.confirmed
        except ItemFailure as failure:
            return failure.error.code, inquiry.answer

    return await asyncio.create_task(one())


def over_http(
    uris: Sequence[tuple[str, Validators]], *, robots_txt: RobotsTxt | None = None, **limits: int
) -> list[tuple[Any, Any]]:
    async def all_of_them() -> list[tuple[Any, Any]]:
        fetcher = HttpFetcher(replace(LIMITS, **limits), LOOPBACK, robots_txt=robots_txt)
        async with opened(fetcher):
            return [await ask(fetcher, uri, known) for uri, known in uris]

    return asyncio.run(all_of_them())


def versioned(site: HttpSite, **query: str) -> str:
    return site.url("/versioned?" + urlencode(query))


def test_an_image_with_the_validators_of_the_store_is_not_read() -> None:
    both = Validators(ETAG, MONDAY)
    with HttpSite() as site:
        tagged, dated = versioned(site, etag=ETAG), versioned(site, modified=MONDAY)
        found = over_http(
            [
                (versioned(site, etag=ETAG, modified=MONDAY), both),
                (tagged, Validators(etag=ETAG)),
                (dated, Validators(last_modified=MONDAY)),
                (tagged, Validators(etag='"v0"')),
                (tagged, NOTHING),
            ]
        )

        assert found == [
            (UNCHANGED, both),
            (UNCHANGED, Validators(etag=ETAG)),
            (UNCHANGED, Validators(last_modified=MONDAY)),
            (IMAGE, Validators(etag=ETAG)),
            (IMAGE, Validators(etag=ETAG)),
        ]  # fmt: skip
        assert len(site.connections) == 1  # kept, whatever the answer


def test_an_unchanged_image_may_have_another_etag_by_now() -> None:
    with HttpSite() as site:
        uri = versioned(site, etag=ETAG, later='W/"v1"')

        assert over_http([(uri, Validators(etag=ETAG))]) == [(UNCHANGED, Validators(etag='W/"v1"'))]


def test_conditions_are_sent_to_the_address_of_the_item_only_and_not_for_robots_txt() -> None:
    known = Validators(ETAG, MONDAY)
    with HttpSite() as site:
        site.robots_txt = "User-agent: *\nAllow: /\n"
        here, there = site.url("/echo"), site.url("/redirect?" + urlencode({"to": "/echo"}))

        direct, redirected = over_http([(here, known), (there, known)], robots_txt=RobotsTxt())

        headers, others = (json.loads(body)["headers"] for body, _ in (direct, redirected))
        assert (headers["If-None-Match"], headers["If-Modified-Since"]) == (ETAG, MONDAY)
        assert not {"If-None-Match", "If-Modified-Since"}.intersection(others)
        assert site.requests["/robots.txt"] == 1


def test_an_image_behind_a_redirect_is_read_and_has_no_validators() -> None:
    """The address may lead to another image tomorrow, whose server says that it has not changed."""
    with HttpSite() as site:
        image = versioned(site, etag=ETAG, modified=MONDAY)
        there = site.url("/redirect?" + urlencode({"to": image}))
        not_asked = site.url("/redirect?" + urlencode({"to": "/status/304"}))

        found = over_http(
            [(there, NOTHING), (there, Validators(ETAG, MONDAY)), (not_asked, Validators(ETAG))]
        )

        assert found == [(IMAGE, NOTHING), (IMAGE, NOTHING), (ErrorCode.HTTP_ERROR, NOTHING)]


@pytest.mark.parametrize("bad", ['"a\r\nX-Evil: 1"', '"ä"', f'"{"x" * 300}"'])
def test_validators_that_no_header_can_have_are_not_sent(bad: str) -> None:
    with HttpSite() as site:
        ((body, _),) = over_http([(site.url("/echo"), Validators(bad, bad))])

        assert not {"If-None-Match", "If-Modified-Since", "X-Evil"}.intersection(json.loads(body)["headers"])


def test_a_server_that_says_unchanged_without_being_asked_has_failed() -> None:
    with HttpSite() as site:
        assert over_http([(site.url("/status/304"), NOTHING)]) == [(ErrorCode.HTTP_ERROR, NOTHING)]


def test_a_site_that_refuses_by_its_header_refuses_unchanged_images_too() -> None:
    with HttpSite() as site:
        uri = site.url("/tagged?tag=noai&status=304")

        assert over_http([(uri, Validators(etag=ETAG))])[0][0] == ErrorCode.ROBOTS_REFUSED


def test_an_image_without_validators_has_none(tmp_path: Any) -> None:
    (tmp_path / "a.png").write_bytes(IMAGE)
    os.utime(tmp_path / "a.png", (0, 0))
    with HttpSite(tmp_path) as site:
        (bare, _), (body, of_file) = over_http(
            [(site.url("/bare/a.png"), NOTHING), (site.url("/files/a.png"), NOTHING)]
        )
        ((again, _),) = over_http([(site.url("/files/a.png"), of_file)])

    assert (bare, body, again) == (IMAGE, IMAGE, UNCHANGED)
    assert of_file.etag and of_file.last_modified


def test_an_image_that_has_just_changed_is_not_asked_for_by_that_time() -> None:
    """It may change again in the same second."""
    now = format_datetime(datetime.now(UTC), usegmt=True)
    with HttpSite() as site:
        found = over_http(
            [(versioned(site, modified=now), NOTHING), (versioned(site, modified=MONDAY), NOTHING)]
        )

    assert found == [(IMAGE, NOTHING), (IMAGE, Validators(last_modified=MONDAY))]


@pytest.mark.long
def test_objects_of_s3_are_asked_for_by_their_etags_on_both_ways(s3: S3Bucket) -> None:
    uri = s3.put("a.png", IMAGE)
    boto_calls: list[str] = []

    def connected() -> Any:
        connection = connect(attempts=1)
        events = connection.client.meta.events
        events.register("before-call.s3.GetObject", lambda params, **_: boto_calls.append(params["url_path"]))
        return connection

    async def all_of_them() -> list[tuple[Any, Any]]:
        limits = S3Limits(max_image_bytes=100_000, fetch_timeout_seconds=20, connections=4)
        found = []
        async with opened(S3Fetcher(limits, (), connected)) as first:
            found.append(await ask(first, uri))
        known = found[0][1]
        async with opened(S3Fetcher(limits, (), connected)) as second:
            found += [await ask(second, uri, known) for _ in range(2)]
            s3.put("a.png", b"another")
            found.append(await ask(second, uri, known))
        async with opened(S3Fetcher(limits, (), connected)) as third:
            found.append(await ask(third, uri, known))
        return found

    found = asyncio.run(all_of_them())

    assert [one for one, _ in found] == [IMAGE, UNCHANGED, UNCHANGED, b"another", b"another"]
    first, second, third, changed, changed_too = (validators for _, validators in found)
    assert first.etag.startswith('"')
    assert first.etag == second.etag == third.etag != changed.etag == changed_too.etag
    assert len(boto_calls) == 3  # the first of each fetcher
