"""Where decisions are recorded: a log for each key, in the gateway's place."""

from __future__ import annotations

from clipfleet.contract.jobs import Job
from clipfleet.contract.policies import DecisionLog
from clipfleet.moderation.log import write_policy
from clipfleet.outputs import Output, objects, open_output
from clipfleet.submit.options import DecisionPlace
from clipfleet_gateway.policies.shelf import PolicyShelf
from clipfleet_gateway.policies.stored import StoredPolicy

_MOST_BEGUN = 10_000  # pairs of a key and a policy that are remembered


class DecisionLogs:
    """The logs of all keys. Thread-safe. Raises `OutputUnavailableError` if the place is unavailable."""

    def __init__(self, place: Output, shelf: PolicyShelf, keep_days: int | None) -> None:
        """`keep_days`: how long records are kept; None: for ever."""
        self._place = place
        self._shelf = shelf
        self._keep_days = keep_days
        self._begun: set[tuple[str, str]] = set()

    def output(self, owner: str) -> Output:
        """The log of a key."""
        return open_output(self._uri(owner))

    def log_of(self, owner: str) -> DecisionLog:
        """What a job of a key carries of its log."""
        return DecisionLog(uri=self._uri(owner), keep_days=self._keep_days, owner=owner)

    def place_of(self, owner: str) -> DecisionPlace:
        """The same for a job that is submitted by `Client`."""
        return DecisionPlace(self._uri(owner), self._keep_days, owner)

    def begin(self, job: Job, stored: StoredPolicy, owner: str) -> None:
        """Keep the policy of a request's job in the log, with the heads that workers read there. Idempotent.

        Raises:
            OutputDamagedError: a head is gone from the place.
        """
        if (owner, stored.sha256) in self._begun:
            return
        log = self.output(owner)
        for head in stored.policy.heads:
            log.create(objects.head_file(head.sha256), self._shelf.head_data(stored.name, head.sha256))
        write_policy(log, job)
        if len(self._begun) >= _MOST_BEGUN:
            self._begun.clear()
        self._begun.add((owner, stored.sha256))

    def _uri(self, owner: str) -> str:
        return f"{self._place.uri}/decisions/{owner}"
