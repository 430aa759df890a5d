"""An HTTP proxy in front of a real S3 store that breaks requests by rules, reproducibly.

Clients sign the address that they call, and the store checks the address that it is called by: the front
passes the `Host` header on as it came, so signatures stay valid. Everything that no rule matches goes through
unchanged. Rules may be added and taken away while requests are under way.
"""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.loopback_site import LoopbackSite

_PIECE_BYTES = 1 << 14
_UPSTREAM_SECONDS = 60.0
_PER_HOP = ("connection", "keep-alive", "transfer-encoding", "expect")


class Fault(StrEnum):
    """What can go wrong with a request."""

    INTERNAL_ERROR = "500"
    UNAVAILABLE = "503"
    SLOW_DOWN = "503 SlowDown"
    TOO_MANY_REQUESTS = "429"
    REQUEST_TIMEOUT = "400 RequestTimeout"
    EXPIRED_TOKEN = "403 ExpiredToken"
    INVALID_ACCESS_KEY = "403 InvalidAccessKeyId"
    SKEWED = "403 RequestTimeTooSkewed"
    ACCESS_DENIED = "403 AccessDenied"
    CONFLICT = "409 ConditionalRequestConflict"
    PRECONDITION_FAILED = "412 PreconditionFailed"
    RESET = "reset before the request's body"
    RESET_IN_REQUEST = "reset within the request's body"
    RESET_IN_ANSWER = "reset within the answer's body"
    TRUNCATED = "the answer's body ends early"
    STALL = "no answer"
    STALL_IN_ANSWER = "silence within the answer's body"
    WRONG_ETAG = "another ETag"
    # The store has carried the request out; only the answer says otherwise.
    DONE_BUT_500 = "500, but it was done"
    DONE_BUT_503 = "503, but it was done"
    DONE_BUT_CONFLICT = "409, but it was done"
    DONE_BUT_RESET = "reset after it was done"
    DONE_BUT_STALL = "no answer after it was done"


_ANSWERS: Mapping[Fault, tuple[int, str]] = {
    Fault.INTERNAL_ERROR: (500, "InternalError"),
    Fault.UNAVAILABLE: (503, "ServiceUnavailable"),
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.TOO_MANY_REQUESTS: (429, "TooManyRequests"),
    Fault.REQUEST_TIMEOUT: (400, "RequestTimeout"),
    Fault.EXPIRED_TOKEN: (403, "ExpiredToken"),
    Fault.INVALID_ACCESS_KEY: (403, "InvalidAccessKeyId"),
    Fault.SKEWED: (403, "RequestTimeTooSkewed"),
    Fault.ACCESS_DENIED: (403, "AccessDenied"),
    Fault.CONFLICT: (409, "ConditionalRequestConflict"),
    Fault.PRECONDITION_FAILED: (412, "PreconditionFailed"),
    Fault.DONE_BUT_500: (500, "InternalError"),
    Fault.DONE_BUT_503: (503, "SlowDown"),
    Fault.DONE_BUT_CONFLICT: (409, "ConditionalRequestConflict"),
}
_DONE = frozenset(fault for fault in Fault if fault.name.startswith("DONE_BUT"))
_IN_ANSWER = frozenset({Fault.RESET_IN_ANSWER, Fault.TRUNCATED, Fault.STALL_IN_ANSWER, Fault.WRONG_ETAG})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Which requests a fault hits."""

    fault: Fault
    method: str = "*"  # GET, HEAD, PUT, POST, DELETE
    path: str = "*"  # a pattern for `BUCKET/KEY`, decoded; `*` goes over slashes
    conditional: bool | None = None  # only requests with If-Match or If-None-Match, or only those without
    access_key: str = "*"  # a pattern for the key id that signed the request
    chance: float = 1.0  # of each request that fits
    skip: int = 0  # so many that fit are let through first
    times: int | None = None  # so many are hit, then the rule is done; None: no end

    def fits(self, request: Request) -> bool:
        """Whether the rule is about such requests."""
        return (
            fnmatch.fnmatchcase(request.method, self.method)
            and fnmatch.fnmatchcase(request.path, self.path)
            and self.conditional in (None, request.is_conditional)
            and fnmatch.fnmatchcase(request.access_key, self.access_key)
        )


@dataclass(frozen=True, slots=True)
class Request:
    """What rules look at."""

    method: str
    path: str  # BUCKET/KEY, decoded
    is_conditional: bool
    access_key: str


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that came, in order of arrival."""

    request: Request
    fault: Fault | None


@dataclass(frozen=True, slots=True)
class Done:
    """A write or removal that the store has carried out, whatever its client was answered."""

    request: Request
    content: str  # sha256 of what was written


class _Placed:
    """A rule in force, with its counts."""

    def __init__(self, rule: Rule, number: int, seed: int) -> None:
        self.rule = rule
        self._number = number
        self._seed = seed
        self._fitting = 0
        self._hits = 0
        self._by_request: Counter[Request] = Counter()

    def hits(self, request: Request) -> bool:
        """Whether this request is hit: by the seed and by how often it came, not by the time."""
        rule = self.rule
        if not rule.fits(request) or (rule.times is not None and self._hits >= rule.times):
            return False
        self._fitting += 1
        self._by_request[request] += 1
        if self._fitting <= rule.skip:
            return False
        name = f"{self._seed}/{self._number}/{request.method}/{request.path}/{self._by_request[request]}"
        if random.Random(name).random() >= rule.chance:
            return False
        self._hits += 1
        return True


class S3Front(LoopbackSite):
    """The proxy, on a port of its own. A context manager; safe to use from many threads.

    Args:
        upstream: endpoint of the store, `http://HOST:PORT`.
        seed: two fronts with the same seed and rules treat the n-th equal request alike.
    """

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._seed = seed
        self._placed: list[_Placed] = []
        self._numbers = 0
        self._seen: list[Seen] = []
        self._done: list[Done] = []
        self._lock = threading.Lock()
        self._released = threading.Event()  # requests that stall may end
        super().__init__(_Server(self))

    def __exit__(self, *_: object) -> None:
        self._released.set()
        super().__exit__()

    @property
    def endpoint(self) -> str:
        """What clients use as `AWS_ENDPOINT_URL`."""
        return self.url

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The `AWS_*` variables of the store, with the front as its endpoint."""
        return {**environment, "AWS_ENDPOINT_URL": self.endpoint, "AWS_ENDPOINT_URL_S3": self.endpoint}

    def place(self, *rules: Rule) -> None:
        """Put rules in force, after those that are; the first one that hits a request counts."""
        with self._lock:
            for rule in rules:
                self._placed.append(_Placed(rule, self._numbers, self._seed))
                self._numbers += 1

    def heal(self) -> None:
        """Take all rules away, and let go what stalls."""
        with self._lock:
            self._placed.clear()
            self._released.set()
            self._released = threading.Event()

    @contextmanager
    def broken_by(self, *rules: Rule) -> Iterator[None]:
        """These rules for the time of the context, no rule after it."""
        self.place(*rules)
        try:
            yield
        finally:
            self.heal()

    @property
    def seen(self) -> list[Seen]:
        """All requests so far."""
        with self._lock:
            return list(self._seen)

    @property
    def hits(self) -> Counter[Fault]:
        """How many requests each fault has hit so far."""
        return Counter(one.fault for one in self.seen if one.fault is not None)

    @property
    def done(self) -> list[Done]:
        """All writes (PUT) and removals (DELETE) of single objects so far, as the store answered them."""
        with self._lock:
            return list(self._done)

    # --- For the handlers ---

    def note_done(self, request: Request, body: bytes, status: int) -> None:
        """Take note of what the store answers."""
        if request.method in ("PUT", "DELETE") and status < http.client.MULTIPLE_CHOICES:
            with self._lock:
                self._done.append(Done(request, hashlib.sha256(body).hexdigest()))

    def judge(self, request: Request) -> Fault | None:
        """What happens to a request that has just come."""
        with self._lock:
            placed = next((placed for placed in self._placed if placed.hits(request)), None)
            fault = placed.rule.fault if placed else None
            self._seen.append(Seen(request, fault))
            return fault

    def stall(self) -> None:
        """Wait until the rules are taken away."""
        with self._lock:
            released = self._released
        released.wait()

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the store."""
        return http.client.HTTPConnection(*self._upstream, timeout=_UPSTREAM_SECONDS)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, front: S3Front) -> None:
        self.front = front
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news here."""


class _Handler(BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def _treat(self) -> None:
        request = Request(
            self.command,
            unquote(urlsplit(self.path).path.lstrip("/")),
            "If-None-Match" in self.headers or "If-Match" in self.headers,
            _access_key(self.headers.get("Authorization", "")),
        )
        fault = self.server.front.judge(request)
        if fault is Fault.RESET:
            return self._reset()
        body = self._body(within=fault is Fault.RESET_IN_REQUEST)
        if fault is Fault.RESET_IN_REQUEST:
            return self._reset()
        if fault is Fault.STALL:
            self.server.front.stall()
            return self._reset()
        if fault is not None and fault in _ANSWERS and fault not in _DONE:
            return self._refuse(*_ANSWERS[fault])
        return self._forward(request, body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _treat  # noqa: N815 - the names of http.server

    def _body(self, *, within: bool) -> bytes:
        """What the client sends, or its first half."""
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length // 2 if within else length)

    def _forward(self, request: Request, body: bytes, fault: Fault | None) -> None:
        connection = self.server.front.connect()
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _PER_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            data = answer.read()
            self.server.front.note_done(request, body, answer.status)
        except (OSError, http.client.HTTPException):
            return self._reset()  # the store itself is away
        finally:
            connection.close()
        if fault is not None and fault in _DONE:
            return self._lie(fault)
        return self._pass_on(answer, data, fault)

    def _lie(self, fault: Fault) -> None:
        if fault in _ANSWERS:
            return self._refuse(*_ANSWERS[fault])
        if fault is Fault.DONE_BUT_STALL:
            self.server.front.stall()
        return self._reset()

    def _pass_on(self, answer: http.client.HTTPResponse, data: bytes, fault: Fault | None) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() == "etag" and fault is Fault.WRONG_ETAG:
                self.send_header(name, f'"{"0" * 32}"')
            elif name.lower() not in (*_PER_HOP, "content-length"):
                self.send_header(name, value)
        # The answer to HEAD names a length that no bytes follow.
        length = answer.getheader("Content-Length") or "0" if self.command == "HEAD" else str(len(data))
        if answer.status != http.client.NO_CONTENT:
            self.send_header("Content-Length", length)
        self.end_headers()
        if fault not in _IN_ANSWER or fault is Fault.WRONG_ETAG:
            self.wfile.write(data)
            return None
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        if fault is Fault.STALL_IN_ANSWER:
            self.server.front.stall()
        if fault is Fault.TRUNCATED:
            self.close_connection = True
            return None
        return self._reset()

    def _refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>as the test wishes</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        """End the connection by RST, not by FIN."""
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        with suppress(OSError):
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the front keeps its own list."""


def _access_key(authorization: str) -> str:
    """The key id in `AWS4-HMAC-SHA256 Credential=KEY/DATE/...`."""
    _, _, rest = authorization.partition("Credential=")
    return rest.partition("/")[0]
