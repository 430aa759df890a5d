"""A ledger that grants the claims that it was given, and puts the ends of chunks and jobs into words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from clipfleet.contract.jobs import Lane
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.answers import CompleteAnswer, RenewAnswer
from clipfleet.ledger.jobs import Claim, Lease, WorkerFacts
from tests.support.ledger_replies import RepliesLedger

ME = WorkerFacts("me", "host", 2, ("demo",))
OTHER_WORKER = WorkerFacts("other", "host", 1, ("demo",))


class RecordingLedger(RepliesLedger):
    """`told` holds what was recorded of ends, in tuples of words."""

    def __init__(self) -> None:
        super().__init__()
        self.replies["complete"] = CompleteAnswer.DONE
        self.offers: list[tuple[Lane, Claim]] = []
        self.others: list[WorkerFacts] = []
        self.words: dict[str, str] = {}  # of renewals, by chunk
        self.told: list[tuple[str, ...]] = []

    def offer(self, claim: Claim, lane: Lane = Lane.NORMAL) -> None:
        self.offers.append((lane, claim))

    def goes_away(self, *calls: str) -> None:
        self.replies.update(dict.fromkeys(calls, RedisUnavailableError("away")))

    @property
    def renewed(self) -> list[list[str]]:
        """Chunks, by renewal."""
        return [[lease.chunk for lease in leases] for leases, _ in self.named("renew")]

    def _reply(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answer = super()._reply(name, call, *args, **kwargs)
        match name:
            case "complete":
                self.told.append((name, args[0].job_id, str(kwargs["ok"]), str(kwargs["failed"])))
            case "release":
                self.told.append((args[1], kwargs["reason"]))
            case "fail":
                self.told.append((name, *args))
            case "postpone_finish":
                self.told.append(("postpone", args[0].job_id, f"{args[1]:g}", *args[2:]))
        return answer

    def claim(self, token: str, lease_seconds: float, lanes: Sequence[Lane], *_: Any) -> Claim | None:
        found = next((offer for offer in self.offers if offer[0] in lanes), None)
        if found is None:
            return None
        self.offers.remove(found)
        return found[1]

    def workers(self) -> list[WorkerFacts]:
        return [ME, *self.others]

    def renew(self, leases: Sequence[Lease], lease_seconds: float) -> list[RenewAnswer]:
        return [RenewAnswer(self.words.get(lease.chunk, "held")) for lease in leases]
