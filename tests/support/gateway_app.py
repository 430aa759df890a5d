"""A gateway in this process: its application behind aiohttp's test server, and keys to ask it with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from pydantic import SecretStr

from clipfleet.settings import checked
from clipfleet_gateway.services import Services
from clipfleet_gateway.settings import GatewaySettings
from clipfleet_gateway.web.app import make_app

NO_REDIS = "redis://127.0.0.1:1/0"
Asking = TestClient[web.Request, web.Application]


@contextmanager
def gateway_services(place: str, redis_url: str = NO_REDIS, **settings: object) -> Iterator[Services]:
    """Services over a place; without a Redis, for requests that need none."""
    values = {"redis_url": SecretStr(redis_url), "gateway_output": place, **settings}
    with Services(checked(GatewaySettings, **values)) as services:
        yield services


@asynccontextmanager
async def asking(services: Services, token: str) -> AsyncIterator[Asking]:
    """A client of a gateway that sends this key with each request."""
    headers = {"Authorization": f"Bearer {token}"}
    async with TestClient(TestServer(make_app(services)), headers=headers) as client:
        yield client
