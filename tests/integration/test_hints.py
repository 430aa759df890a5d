"""Hints on a real broker."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from kombu import pools
from kombu.transport.redis import Channel

from clipfleet.hints import Hints, make_app
from clipfleet.ledger import keys


@pytest.mark.parametrize("step", ["_queue_bind", "_put"])
def test_a_connection_that_is_lost_while_a_hint_is_published(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    # Given a connection that is lost while the queue is declared, or the message sent, in spite of redis-py's
    # own second try
    original = getattr(Channel, step)
    losses = [redis.ConnectionError("Connection reset by peer")]

    def lose_once(self: Channel, *arguments: Any, **options: Any) -> Any:
        if losses:
            raise losses.pop()
        return original(self, *arguments, **options)

    monkeypatch.setattr(Channel, step, lose_once)
    pools.reset()  # of the process: its connections may have declared the queue in another test
    hints = Hints(make_app(redis_url), redis_url)

    hints.publish_work(2)
    hints.close()

    assert not losses
    assert redis_client.llen(keys.QUEUE) == 2
