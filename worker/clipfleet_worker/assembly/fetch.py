"""Builds the fetchers and their limits from the settings."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from clipfleet.contract import tar_member
from clipfleet.s3 import client as s3
from clipfleet_worker.fetch.file import FileFetcher
from clipfleet_worker.fetch.http.address_guard import AddressGuard
from clipfleet_worker.fetch.http.fetcher import HttpFetcher, HttpLimits
from clipfleet_worker.fetch.http.robots import RobotsTxt
from clipfleet_worker.fetch.loop import FetchLoop
from clipfleet_worker.fetch.retrying import RetryingFetcher, RetryPolicy
from clipfleet_worker.fetch.routes import Routes, read_data_uri
from clipfleet_worker.fetch.s3.boto import S3Limits
from clipfleet_worker.fetch.s3.fetcher import S3Fetcher
from clipfleet_worker.fetch.waiting_bytes import WaitingBytes
from clipfleet_worker.process.watchdog import Watchdog
from clipfleet_worker.settings import WorkerSettings

_CONNECT_TIMEOUT_SECONDS = 10.0
_IDLE_READ_TIMEOUT_SECONDS = 15.0
_S3_CONNECTIONS = 64  # for fetching; with boto3 each is a thread
_S3_ATTEMPTS = 1  # `RetryingFetcher` retries without holding a connection


def make_routes(settings: WorkerSettings, http: HttpFetcher) -> Routes:
    """Make the fetchers of this worker, by scheme."""
    objects = _s3_fetcher(settings)
    files = FileFetcher([Path(root) for root in settings.file_roots], settings.max_image_bytes)
    return Routes(
        remote={
            "http": http.fetch,
            "https": http.fetch,
            "s3": objects.fetch,
            tar_member.S3_SCHEME: objects.fetch_member,
        },
        local={
            "file": files.read,
            "data": partial(read_data_uri, max_image_bytes=settings.max_image_bytes),
            tar_member.FILE_SCHEME: files.read_member,
        },
        fetchers=(http, objects),
    )


def make_http_fetcher(settings: WorkerSettings) -> HttpFetcher:
    """Make the HTTP fetcher, which limits the connections per host."""
    limits = HttpLimits(
        max_image_bytes=settings.max_image_bytes,
        fetch_timeout_seconds=settings.fetch_timeout_seconds,
        connect_timeout_seconds=min(_CONNECT_TIMEOUT_SECONDS, settings.fetch_timeout_seconds),
        idle_read_timeout_seconds=min(_IDLE_READ_TIMEOUT_SECONDS, settings.fetch_timeout_seconds),
        host_connections=settings.host_connections,
        total_connections=settings.total_connections,
        arriving_bytes=settings.bytes_in_flight,
    )
    return HttpFetcher(
        limits,
        AddressGuard(settings.private_networks, settings.ports),
        contact=settings.contact,
        respects_robots_tag="tag" in settings.robots,
        robots_txt=RobotsTxt() if "txt" in settings.robots else None,
    )


def make_fetch_loop(
    settings: WorkerSettings, routes: Routes, waiting_bytes: WaitingBytes, watchdog: Watchdog
) -> FetchLoop:
    """Make the fetch loop, with retries; pauses of the worker do not count against deadlines."""
    policy = RetryPolicy(attempts=settings.fetch_attempts)
    return FetchLoop(
        RetryingFetcher(routes, policy, monotonic=watchdog.running_time),
        waiting_bytes,
        settings.chunk_deadline_seconds,
        monotonic=watchdog.running_time,
        pulse=watchdog.pulse("fetch loop"),
    )


def _s3_fetcher(settings: WorkerSettings) -> S3Fetcher:
    connections = min(_S3_CONNECTIONS, settings.total_connections)
    limits = S3Limits(
        max_image_bytes=settings.max_image_bytes,
        fetch_timeout_seconds=settings.fetch_timeout_seconds,
        connections=connections,
        connect_timeout_seconds=min(_CONNECT_TIMEOUT_SECONDS, settings.fetch_timeout_seconds),
        idle_read_timeout_seconds=min(_IDLE_READ_TIMEOUT_SECONDS, settings.fetch_timeout_seconds),
    )
    connect = partial(
        s3.connect,
        connections=connections,
        connect_timeout_seconds=limits.connect_timeout_seconds,
        read_timeout_seconds=limits.idle_read_timeout_seconds,
        attempts=_S3_ATTEMPTS,
    )
    return S3Fetcher(limits, settings.s3_buckets, connect)
