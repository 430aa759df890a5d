"""Hints on the broker: published or not, nobody fails for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from amqp.exceptions import AccessRefused
from celery import Celery
from kombu.exceptions import ConnectionLimitExceeded, OperationalError

from clipfleet.hints import Hints, make_app
from clipfleet.ledger import keys

URL = "redis://:s3cret@broker:6379/1"


class FakeApp:
    """Notes what is sent; may fail when a producer is asked for, or when something is sent.

    It is its own producer, and that one's connection.
    """

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.acquire_error: Exception | None = None
        self.send_error: Exception | None = None
        self.connection = self

    @contextmanager
    def producer_or_acquire(self) -> Iterator[FakeApp]:
        if self.acquire_error is not None:
            raise self.acquire_error
        yield self

    def collect(self) -> None:
        pass

    def send_task(self, name: str, *, producer: FakeApp, **_: Any) -> None:
        assert producer is self
        if self.send_error is not None:
            raise self.send_error
        self.sent.append(name)


@pytest.fixture
def app() -> FakeApp:
    return FakeApp()


@pytest.fixture
def hints(app: FakeApp) -> Hints:
    return Hints(cast(Celery, app), URL)


def test_work_is_published_as_often_as_asked(app: FakeApp, hints: Hints) -> None:
    hints.publish_work(3)
    hints.publish_finish()

    assert app.sent == [keys.WORK_TASK] * 3 + [keys.FINISH_TASK]


@pytest.mark.parametrize("where", ["acquire_error", "send_error"])
@pytest.mark.parametrize(
    "error",
    [
        OperationalError("no route"),
        ConnectionLimitExceeded(4),
        OSError(111, "Connection refused"),
        AccessRefused("ACCESS_REFUSED - login was refused"),  # of RabbitMQ: kombu passes it on as it is
    ],
)
def test_a_broker_that_is_away_is_logged_and_nothing_else(
    app: FakeApp, hints: Hints, caplog: pytest.LogCaptureFixture, where: str, error: Exception
) -> None:
    setattr(app, where, error)

    hints.publish_work(3)
    hints.publish_finish()

    assert app.sent == []
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "redis://***@broker:6379/1" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_bug_is_not_taken_for_a_broker(app: FakeApp, hints: Hints) -> None:
    app.send_error = TypeError("bug")

    with pytest.raises(TypeError):
        hints.publish_work()


@pytest.mark.parametrize(
    ("url", "has_redis_options"), [(URL, True), ("rediss://h", True), ("amqp://h//", False)]
)
def test_an_app_for_each_kind_of_broker(url: str, has_redis_options: bool) -> None:
    app = make_app(url)

    assert ("visibility_timeout" in app.conf.broker_transport_options) is has_redis_options
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_default_queue == keys.QUEUE
    assert app.conf.result_backend is None
