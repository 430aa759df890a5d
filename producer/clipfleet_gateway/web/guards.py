"""What every request passes, outermost first: id, errors, host, key."""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
from collections.abc import Collection
from http import HTTPStatus

from aiohttp import web

from clipfleet.errors import ClipfleetError
from clipfleet_gateway.errors import FAILED, INVALID, ApiError, invalid
from clipfleet_gateway.web.answers import HEAD, as_api_error, refusal
from clipfleet_gateway.web.callers import CALLER, Callers
from clipfleet_gateway.web.operations import Handler, Middleware

_LOG = logging.getLogger(__name__)
OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json"})  # to anyone who reaches the port
_ID: web.RequestKey[str] = web.RequestKey("id", str)
_BEGUN: web.RequestKey[web.StreamResponse] = web.RequestKey("begun", web.StreamResponse)
_ALWAYS = ("localhost", "localhost.localdomain")


def answering() -> Middleware:
    """Turns whatever a request ends in into an answer, with an id that the log has, too."""

    @web.middleware
    async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Exception as error:  # the boundary of the program: what leaves says nothing of the inside
            begun = request.get(_BEGUN)
            return _refusal(request, error) if begun is None else _cut(request, error, begun)

    return answer_errors


async def complete_head(request: web.Request, response: web.StreamResponse) -> None:
    """Complete the head of each answer before it is sent; for `on_response_prepare` of an application."""
    response.headers.update(HEAD)
    response.headers["x-request-id"] = _id_of(request)
    request[_BEGUN] = response


def _id_of(request: web.Request) -> str:
    """The id of a request in its answer and in the log."""
    if _ID not in request:
        request[_ID] = f"req_{secrets.token_hex(12)}"
    return request[_ID]


def _refusal(request: web.Request, error: Exception) -> web.Response:
    if isinstance(error, ApiError):
        return refusal(error)
    if isinstance(error, ClipfleetError):
        return refusal(as_api_error(error))
    if isinstance(error, web.HTTPException):
        return refusal(_of_aiohttp(error, request))
    request_id = _id_of(request)
    _LOG.error("request %s failed: %s %s", request_id, request.method, request.path, exc_info=error)
    return refusal(ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, f"Internal error, see {request_id}", FAILED))


def _cut(request: web.Request, error: Exception, begun: web.StreamResponse) -> web.StreamResponse:
    """Close the connection of an answer that fails in the middle, so that its client sees it."""
    is_expected = isinstance(error, ClipfleetError | OSError)
    _LOG.log(
        logging.WARNING if is_expected else logging.ERROR, "the answer to %s, %s %s, is cut: %s",
        _id_of(request), request.method, request.path, error, exc_info=None if is_expected else error,
    )  # fmt: skip
    if request.transport is not None:
        request.transport.abort()
    return begun


def _of_aiohttp(error: web.HTTPException, request: web.Request) -> ApiError:
    if error.status == HTTPStatus.NOT_FOUND:
        return invalid(
            f"There is no {request.path}: /openapi.json lists all paths, such as /v1/embeddings",
            code="unknown_url", status=HTTPStatus.NOT_FOUND,
        )  # fmt: skip
    if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return invalid("The body is too large", code="body_too_large", status=HTTPStatus(error.status))
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return ApiError(
            HTTPStatus.METHOD_NOT_ALLOWED, f"{request.path} takes {allowed}, not {request.method}", INVALID,
            code="method_not_allowed", headers={"Allow": allowed},
        )  # fmt: skip
    return ApiError(HTTPStatus(error.status), error.reason, INVALID)


def hosts(names: Collection[str]) -> Middleware:
    """Refuses requests for names that are not the gateway's: a page cannot point a name of its own here."""
    known = {name.lower() for name in (*names, *_ALWAYS, socket.gethostname())}

    @web.middleware
    async def check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.getall("Host", [])
        if not request.raw_path.startswith("/"):  # http://HOST/PATH, which proxies send, or *
            given += [request.url.authority]
        if not request.headers.get("Host") or not all(_is_known(host, known) for host in given):
            raise invalid(
                "The Host header names another server; CLIPFLEET_GATEWAY_HOSTS lists the names of this one",
                code="unknown_host", status=HTTPStatus.MISDIRECTED_REQUEST,
            )  # fmt: skip
        return await handler(request)

    return check_host


def _is_known(host: str, known: Collection[str]) -> bool:
    name = host.lower()
    bare, colon, port = name.rpartition(":")
    if colon and port.isdecimal():
        name = bare
    if name in known:
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True  # an address is no name that somebody else could point here


def keys(callers: Callers) -> Middleware:
    """Finds the key of a request, for all but the paths in `OPEN`."""

    @web.middleware
    async def find_key(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in OPEN:
            return await handler(request)
        key = request[CALLER] = await callers.of(request)
        with callers.one_more(key):
            return await handler(request)

    return find_key
