"""Policies of a gateway's place: what a name means, now and for requests that name a version."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import pytest

from clipfleet.contract.policies import Action, Policy
from clipfleet.errors import OutputDamagedError, OutputTooNewError, UsageError
from clipfleet.moderation.policy_files import PolicyFile
from clipfleet.outputs.folder import FolderOutput
from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.policies.known import KnownPolicies
from clipfleet_gateway.policies.shelf import PolicyShelf
from tests.support.doubles import Clock
from tests.support.heads import head_file
from tests.support.policies import make_policy


def policy_file(version: str = "1", **values: object) -> PolicyFile:
    return PolicyFile(make_policy(version=version, **values))  # type: ignore[arg-type]  # any field


@pytest.fixture
def shelf(place: FolderOutput) -> PolicyShelf:
    return PolicyShelf(place)


def refused(call: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        call()
    return int(caught.value.status), caught.value.message


def test_a_name_means_what_was_added_last_and_versions_stay_readable(shelf: PolicyShelf) -> None:
    first, is_new = shelf.add(policy_file("1"))
    second, _ = shelf.add(policy_file("2"))

    assert is_new
    assert shelf.require("uploads") == second
    assert shelf.require(f"uploads@{first.sha256[:8]}") == first
    assert shelf.require(first.full_name).policy == policy_file("1").policy
    assert shelf.add(policy_file("2")) == (second, False)
    assert shelf.add(policy_file("1")) == (first, True)


def test_without_a_name_the_only_policy_is_meant(shelf: PolicyShelf) -> None:
    assert refused(lambda: shelf.require(None))[0] == HTTPStatus.BAD_REQUEST
    stored, _ = shelf.add(policy_file())
    assert shelf.require(None) == stored

    shelf.add(policy_file(name="avatars"))

    assert refused(lambda: shelf.require(None)) == (400, "model: name a policy: one of avatars, uploads")


@pytest.mark.parametrize("model", ["none", "uploads@ffffffffff", "../keys/mine", "uploads@../x", ""])
def test_a_policy_that_is_not_there(shelf: PolicyShelf, model: str) -> None:
    shelf.add(policy_file())

    status, message = refused(lambda: shelf.require(model))

    assert (status, message) == (404, f"There is no policy {model!r}; there is uploads")


def test_a_name_that_was_removed_means_nothing_but_what_has_begun_goes_on(shelf: PolicyShelf) -> None:
    stored, _ = shelf.add(policy_file())

    shelf.remove("uploads")

    assert refused(lambda: shelf.require("uploads"))[0] == HTTPStatus.NOT_FOUND
    assert refused(lambda: shelf.require(stored.full_name))[0] == HTTPStatus.NOT_FOUND
    assert shelf.load("uploads", stored.sha256) == stored
    with pytest.raises(UsageError, match="there is no policy 'uploads'"):
        shelf.remove("uploads")
    assert shelf.add(policy_file()) == (stored, True)


def test_heads_are_kept_with_their_policy(shelf: PolicyShelf, place: FolderOutput) -> None:
    head = head_file(4, 2)
    policy = make_policy(heads=(head.of_job,))

    stored, _ = shelf.add(PolicyFile(policy, (head,)))

    assert shelf.file_of(stored) == PolicyFile(policy, (head,))
    place.remove(f"policies/uploads/{head.of_job.sha256}.safetensors")
    with pytest.raises(OutputDamagedError, match="is gone: add the policy again"):
        shelf.file_of(stored)


def test_what_others_have_changed_decides_nothing(shelf: PolicyShelf, place: FolderOutput) -> None:
    stored, _ = shelf.add(policy_file())
    name = f"policies/uploads/{stored.sha256}.json"
    other = Policy.model_copy(stored.policy, update={"otherwise": Action.REVIEW})

    for data in (other.model_dump_json().encode(), b"{}", b""):
        place.replace(name, data)
        with pytest.raises(OutputDamagedError, match="is damaged"):
            shelf.require("uploads")
    place.replace("policies/uploads.json", b"[]")
    with pytest.raises(OutputDamagedError, match="is damaged"):
        shelf.require("uploads")
    place.replace("policies/uploads.json", b'{"schema_version": 2}')
    with pytest.raises(OutputTooNewError, match="update this gateway"):
        shelf.require("uploads")


def test_a_policy_that_is_too_large_for_each_request(shelf: PolicyShelf) -> None:
    labels = tuple(f"{'x' * 1100} {number}" for number in range(1000))

    with pytest.raises(UsageError, match="use fewer labels"):
        shelf.add(PolicyFile(make_policy(labels=labels)))


class Watched:
    """A place whose calls are counted."""

    def __init__(self, shelf: PolicyShelf) -> None:
        self.shelf, self.clock, self.calls = shelf, Clock(), list[str]()
        self.known = KnownPolicies(
            self._counted("names", shelf.names),
            self._counted("versions", shelf.versions),
            self._counted("load", shelf.load),
            monotonic=self.clock,
        )

    def _counted(self, name: str, call: Callable[..., object]) -> Callable[..., Awaitable[object]]:
        async def counted(*arguments: object) -> object:
            self.calls.append(name)
            return call(*arguments)

        return counted


def test_a_change_counts_within_five_seconds_and_costs_few_calls(shelf: PolicyShelf) -> None:
    first, _ = shelf.add(policy_file("1"))
    watched = Watched(shelf)

    async def run() -> None:
        require, clock = watched.known.require, watched.clock
        assert [await require("uploads") for _ in range(3)] == [first] * 3
        assert await require(None) == await require(first.full_name) == first
        assert watched.calls == ["names", "versions", "load"]
        second, _ = shelf.add(policy_file("2"))
        clock.now += 5.0
        assert await require("uploads") == second
        assert await require(first.full_name) == first
        assert watched.calls == [*["names", "versions", "load"] * 2]
        shelf.remove("uploads")
        clock.now += 5.0
        with pytest.raises(ApiError, match="there is none: the operator adds one"):
            await require("uploads")
        for number in range(100):
            with pytest.raises(ApiError):
                await require(f"guess-{number}")
        assert watched.calls.count("names") == 3

    asyncio.run(run())
