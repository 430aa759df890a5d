"""Turns the text of a URL into a request target, for the first request and for each redirect.

Pure text work: no look-up and no I/O. The address guard decides whether the address behind a host is
allowed.
"""

from __future__ import annotations

import ipaddress
import re
import string
from dataclasses import dataclass
from urllib.parse import quote, urljoin

from yarl import URL

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure

_PARTS = re.compile(r"[A-Za-z]+://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")
_UNDECODABLE = re.compile(r"[\udc80-\udcff]")
_HOST_AND_PORT = re.compile(r"(?:\[[^]]*\]|[^:]*)(?::[0-9]*)?")
_HOST_NAME = re.compile(r"(?=.{1,254}$)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
# What may stand on the wire as it is: the characters of RFC 3986, and % only in front of two hex digits.
_WIRE_READY = re.compile(r"(?:[!#$&-;=?-\[\]_a-z~]|%[0-9A-Fa-f]{2})*")


@dataclass(frozen=True, slots=True)
class Target:
    """One request: where to, and what for."""

    text: str  # the URL as it was written, absolute
    url: URL  # what goes on the wire
    scheme: str  # http or https
    host: str  # lower case, punycode, without brackets

    @property
    def origin(self) -> str:
        """Host and port: what is up or down."""
        return f"{self.host}:{self.url.port}"


def target_of(text: str) -> Target:
    """Check a URL and take it apart.

    Path and query go on the wire as they were written where that is possible: servers that sign URLs (image
    proxies, CDNs) compare bytes, and re-quoting `%2F` to `/` would make them answer 403.

    Raises:
        ItemFailure: `bad_uri` or `scheme_refused`; the message repeats nothing of the URL.
    """
    if _CONTROL_CHARACTERS.search(text):
        raise _bad("a control character in the URL")
    try:
        text.encode()
        url = URL(text)
        host = url.raw_host
    except (ValueError, LookupError):  # yarl 1.25 lets an IndexError out of "http://[]@"
        raise _bad("not a URL") from None
    if url.scheme not in ("http", "https"):
        raise ItemFailure(ErrorCode.SCHEME_REFUSED, "neither http nor https")
    parts = _PARTS.match(text)
    if parts is None or not host:
        raise _bad("a URL without a host")
    if "@" in parts["authority"]:
        raise _bad("a URL with a user name or password: credentials are refused")
    if not _HOST_AND_PORT.fullmatch(parts["authority"]):
        raise _bad("not a port")  # Python's int takes +80, 8_0 and digits of other scripts
    if not (_is_ipv6(host) if "[" in parts["authority"] else _HOST_NAME.fullmatch(host)):
        raise _bad("not a host name")
    return Target(text, _as_written(url, parts["path"], parts["query"] or ""), url.scheme, host)


def next_target(current: Target, location: str) -> Target:
    """Where a redirect leads; the same checks hold as for the first URL.

    A redirect from https to plain http is refused: https promises that the image is not exchanged on the way.

    Raises:
        ItemFailure: see `target_of`.
    """
    try:
        if _UNDECODABLE.search(location):  # aiohttp's way to hand over bytes that are not UTF-8
            location = quote(location.encode(errors="surrogateescape"), safe=string.punctuation + " ")
        target = target_of(urljoin(current.text, location.strip()))
    except ItemFailure as failure:
        raise ItemFailure(failure.error.code, f"redirected to {failure.error.detail}") from None
    except ValueError:
        raise _bad("redirected to something that is not a URL") from None
    if current.scheme == "https" and target.scheme == "http":
        raise ItemFailure(ErrorCode.SCHEME_REFUSED, "redirected from https to http")
    return target


def _as_written(url: URL, path: str, query: str) -> URL:
    # Dot segments are resolved by the client (RFC 3986, 5.2.4), and yarl has done so.
    if "/." in path or not (_WIRE_READY.fullmatch(path) and _WIRE_READY.fullmatch(query)):
        return url
    return URL.build(
        scheme=url.scheme,
        authority=url.raw_authority,
        path=path or "/",
        query_string=query,
        encoded=True,
    )


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host.partition("%")[0])  # a zone is a matter of the address guard
    except ValueError:
        return False
    return True


def _bad(detail: str) -> ItemFailure:
    return ItemFailure(ErrorCode.BAD_URI, detail)
