"""The names that the server's own Lua makes are those of keys.py."""

from __future__ import annotations

import pytest
import redis

from clipfleet.ledger import keys


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        ("job_key('j.1')", keys.job("j.1")),
        ("job_key('j.1', DUE)", keys.job("j.1", keys.DUE)),
        ("pending_key('j.1', 't', ROWS)", keys.pending("j.1", "t", keys.ROWS)),
        ("lane_queue('bulk', 'ViT-B-32:openai')", keys.lane_queue("bulk", "ViT-B-32:openai")),
        ("token_key('t')", keys.claim_token("t")),
        ("LEASES", keys.LEASES),
        ("table.concat(JOB_SUFFIXES, '|')", "|".join(keys.JOB_SUFFIXES)),
    ],
)
def test_a_name(redis_client: redis.Redis, expression: str, name: str) -> None:
    assert redis_client.eval(f"{keys.lua_prelude()}\nreturn {expression}", 0) == name
