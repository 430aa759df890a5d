"""Secrets of endpoints and the users of ops/redis/users.acl: producers write them, only workers read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import redis
from redis.exceptions import NoPermissionError, ResponseError

from clipfleet.contract.webhooks import EventType, new_secret
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger import keys
from clipfleet.ledger.events.outbox import Outbox
from clipfleet.redis.connection import connect
from tests.support.acl_users import make_users, refusals, url_of
from tests.support.endpoints import add_endpoint

AsUser = Callable[[str], Outbox]


@pytest.fixture
def as_user(redis_url: str, redis_client: redis.Redis) -> Iterator[AsUser]:
    """The outbox of a user."""
    passwords = make_users(redis_client)
    opened: list[Outbox] = []

    def as_user(user: str) -> Outbox:
        opened.append(Outbox(url_of(user, passwords, redis_url)))
        return opened[-1]

    yield as_user
    for outbox in opened:
        outbox.close()
    redis_client.execute_command("ACL", "DELUSER", *(f"clipfleet-{user}" for user in passwords))


def test_a_producer_does_all_that_its_commands_do(as_user: AsUser, redis_client: redis.Redis) -> None:
    redis_client.execute_command("ACL", "LOG", "RESET")
    producer, worker = as_user("producer"), as_user("worker")
    endpoint, secret = add_endpoint(producer, "https://example.com/hook")
    for number in range(3):
        producer.publish(f"evt-{number}", EventType.JOB_COMPLETED, json.dumps({}))

    newer = new_secret()
    rotated = producer.rotate(endpoint.endpoint_id, newer)
    assert worker.secrets(rotated) == (newer, secret)
    assert worker.secrets(producer.finish_rotation(endpoint.endpoint_id)) == (newer,)
    one, two, three = worker.claim("token", 3, 60)
    worker.delivered(one)
    worker.fail(two, "HTTP status 400")
    worker.disable(three, "HTTP status 410")
    assert producer.enable(endpoint.endpoint_id)
    assert producer.replay(endpoint.endpoint_id) == 2
    assert producer.backlog() == {endpoint.endpoint_id: 2}
    assert producer.remove_endpoint(endpoint.endpoint_id)
    assert worker.secrets(rotated) == ()

    assert refusals(redis_client) == []


@pytest.mark.parametrize("user", ["producer", "reader"])
def test_none_but_a_worker_reads_a_secret(
    as_user: AsUser, redis_url: str, redis_client: redis.Redis, user: str
) -> None:
    outbox = as_user(user)
    with closing(Outbox(redis_url)) as admin:
        endpoint, _ = add_endpoint(admin, "https://example.com/hook")
    key, (name,) = keys.webhook_secrets(endpoint.endpoint_id), endpoint.secret_ids
    with pytest.raises(RedisUnavailableError, match=r"ops/redis/users\.acl"):
        outbox.secrets(endpoint)

    with connect(outbox._url, retries=0) as client:
        for command in (
            ("HGET", key, name), ("HGETALL", key), ("HKEYS", key), ("HMGET", key, name),
            ("HRANDFIELD", key), ("COPY", key, "clipfleet:mine"), ("RENAME", key, "clipfleet:mine"),
            ("EVAL", f"return redis.call('HGETALL', '{key}')", "0"),
            ("EVAL", f"return redis.call('COPY', '{key}', 'clipfleet:mine')", "0"),
        ):  # fmt: skip
            with pytest.raises((NoPermissionError, ResponseError), match="permission"):
                client.execute_command(*command)
    assert redis_client.exists(key)
