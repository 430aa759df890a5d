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
from clipfleet_gateway.web.answers import as_api_error, refusal
from clipfleet_gateway.web.callers import CALLER, Callers
from clipfleet_gateway.web.operations import Handler, Middleware

_LOG = logging.getLogger(__name__)
OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json"})  # to anyone who reaches the port
_ALWAYS = ("localhost", "localhost.localdomain")


def answering() -> Middleware:
    """Turns whatever a request ends in into an answer, with an id that the log has, too."""

    @web.middleware
    async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = f"req_{secrets.token_hex(12)}"
        try:
            response = await handler(request)
        except ApiError as error:
            response = refusal(error)
        except ClipfleetError as error:
            response = refusal(as_api_error(error))
        except web.HTTPException as error:
            response = refusal(_of_aiohttp(error, request))
        except Exception:  # the boundary of the program: nothing of the inside leaves, all of it is logged
            _LOG.exception("request %s failed: %s %s", request_id, request.method, request.path)
            broken = ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, f"Internal error, see {request_id}", FAILED)
            response = refusal(broken)
        if not response.prepared:
            response.headers["x-request-id"] = request_id
            response.headers["x-content-type-options"] = "nosniff"
        return response

    return answer_errors


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
