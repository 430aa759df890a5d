"""The text of a URL, and what is made of it; what goes over the wire is in test_fetch_http.py."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.http.target import next_target, target_of

NASTY = st.text(alphabet=st.sampled_from(list("htps:/?#@[]%.\\ \n\t\0aA1é①\u202e\ud800\udce4")), max_size=40)


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port"),
    [
        ("http://host.test/x", "http", "host.test", 80),
        ("https://host.test", "https", "host.test", 443),
        ("HTTP://HOST.Test:8080/X", "http", "host.test", 8080),
        ("http://host.test.:80/", "http", "host.test.", 80),
        ("http://host.test:/x", "http", "host.test", 80),
        ("http://under_score.test/", "http", "under_score.test", 80),
        ("http://bücher.test/", "http", "xn--bcher-kva.test", 80),
        ("http://1.2.3.4/", "http", "1.2.3.4", 80),
        ("http://[2606:4700::1111]:8080/", "http", "2606:4700::1111", 8080),
        ("http://host.test?x=a@b", "http", "host.test", 80),
        ("http://host.test/a@b", "http", "host.test", 80),
        ("http://public.test/http://10.0.0.1/@10.0.0.2/#@10.0.0.3", "http", "public.test", 80),
    ],
)
def test_parts(text: str, scheme: str, host: str, port: int) -> None:
    target = target_of(text)
    assert (target.scheme, target.host, target.url.port) == (scheme, host, port)
    assert (target.url.scheme, target.url.raw_host) == (scheme, host)


@settings(deadline=None)
@given(st.one_of(NASTY, st.text(), NASTY.map("http://".__add__), NASTY.map("https://host".__add__)))
@example("http://[v1.x]/")
@example("http://[::1%lo]:1/")
@example("http://host/\udce4")
@example("http://[]@")
@example("http://[:]")
def test_any_text_is_a_target_or_an_item_failure(text: str) -> None:
    try:
        target = target_of(text)
    except ItemFailure as failure:
        assert failure.error.code in (ErrorCode.BAD_URI, ErrorCode.SCHEME_REFUSED)
    else:
        assert target.scheme in ("http", "https")
        assert (target.url.user, target.url.password, target.url.raw_host) == (None, None, target.host)
        sent = target.url.raw_path_qs
        assert sent.startswith("/") and sent.isascii() and sent.isprintable() and " " not in sent


@settings(deadline=None)
@given(st.one_of(NASTY, NASTY.map("//".__add__), NASTY.map("http:".__add__)))
@pytest.mark.parametrize("current", ["http://host.test/a/b?c", "https://[2606:4700::1111]:444/"])
def test_any_location_is_a_target_or_an_item_failure(current: str, location: str) -> None:
    first = target_of(current)
    try:
        target = next_target(first, location)
    except ItemFailure as failure:
        assert failure.error.code in (ErrorCode.BAD_URI, ErrorCode.SCHEME_REFUSED)
    else:
        assert target.url.raw_path_qs.isascii()
        assert first.scheme == "http" or target.scheme == "https"
