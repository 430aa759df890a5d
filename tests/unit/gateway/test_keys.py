"""Keys: made once, found by what a client sends, and by nothing else."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from clipfleet.contract.jobs import Lane
from clipfleet.errors import OutputDamagedError, OutputTooNewError, UsageError
from clipfleet.outputs.folder import FolderOutput
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.keys.known import KnownKeys
from clipfleet_gateway.keys.prefixes import checked_prefix
from clipfleet_gateway.keys.ring import FIRST_NAME, KeyRing


def opened(ring: KeyRing, token: str) -> Key | None:
    """The key that a gateway that has just started finds."""
    find, names = partial(asyncio.to_thread, ring.find), partial(asyncio.to_thread, ring.names)
    return asyncio.run(KnownKeys(find, names).of_token(token))


def test_a_token_opens_its_key_alone(ring: KeyRing) -> None:
    token = ring.add("nightly", lane=Lane.BULK, quota=5, sources=("s3://photos/",))
    other = ring.add("night")

    key = opened(ring, token)
    assert key is not None
    assert (key.name, key.lane, key.quota, key.sources) == ("nightly", Lane.BULK, 5, ("s3://photos/",))
    found = opened(ring, other)
    assert found is not None and found.name == "night"


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1],
        lambda token: token[:-1] + ("0" if token[-1] != "0" else "1"),
        lambda token: token.replace("cf-nightly-", "cf-other-"),
        lambda token: token.replace("cf-nightly-", "cf-../keys/nightly-"),
        lambda token: token.upper(),
        lambda token: token + "\n",
        lambda token: "",
        lambda token: "cf-nightly-" + "é" * 64,
    ],
)
def test_nothing_else_opens_it(ring: KeyRing, change: object) -> None:
    token = ring.add("nightly")
    ring.add("other")

    assert callable(change)
    assert opened(ring, change(token)) is None


def test_the_secret_is_kept_nowhere(ring: KeyRing, tmp_path: Path) -> None:
    secret = ring.add("nightly").rpartition("-")[2].encode()

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(secret in path.read_bytes() for path in files)


def test_a_revoked_key_opens_nothing_and_keeps_its_name(ring: KeyRing) -> None:
    token = ring.add("nightly")

    revoked = ring.revoke("nightly")

    assert opened(ring, token) is None
    assert ring.revoke("nightly") == revoked, "once"
    assert [key.name for key in ring.all()] == ["nightly"]
    with pytest.raises(UsageError, match="there is a key 'nightly' already, or was"):
        ring.add("nightly")


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "a/b", "-a", "a" * 41, "é", "a\n"])
def test_names_are_checked(ring: KeyRing, name: str) -> None:
    with pytest.raises(UsageError, match="small letters, digits and hyphens"):
        ring.add(name)
    with pytest.raises(UsageError, match="there is no key"):
        ring.revoke(name)


def test_of_many_gateways_that_start_at_once_one_makes_the_first_key(place: FolderOutput) -> None:
    rings = [KeyRing(place) for _ in range(8)]

    with ThreadPoolExecutor(8) as pool:
        tokens = [token for token in pool.map(KeyRing.first, rings) if token is not None]

    assert len(tokens) == 1
    key = opened(rings[0], tokens[0])
    assert key is not None and key.name == FIRST_NAME
    rings[0].revoke(FIRST_NAME)
    assert KeyRing(place).first() is None, "a place that had keys gets none by itself"


def test_a_damaged_key_opens_nothing(ring: KeyRing, place: FolderOutput) -> None:
    token = ring.add("nightly")
    for data, error in (
        (b"{", OutputDamagedError),
        (b'{"schema_version": 1, "name": "nightly"}', OutputDamagedError),
        (b'{"schema_version": 2}', OutputTooNewError),
    ):
        place.replace("keys/nightly.json", data)
        with pytest.raises(error, match=r"keys/nightly\.json"):
            opened(ring, token)


@pytest.mark.parametrize("below", ["", "/gateway", "/gateway/files/other", "/link"])
def test_no_source_holds_the_place_or_lies_in_it(ring: KeyRing, tmp_path: Path, below: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)

    with pytest.raises(UsageError, match="the gateway's own place"):
        ring.add("nightly", sources=(checked_prefix(f"{tmp_path}{below}"),))
    ring.add("nightly", sources=(checked_prefix(f"{tmp_path}/gateway2"), checked_prefix("s3://gateway/")))
