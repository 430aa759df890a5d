"""A ledger for unit tests: grants the claims that it was given, records every other call, fails by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipfleet.contract.jobs import Lane
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.answers import CompleteAnswer, PostponeAnswer, ReleaseAnswer, RenewAnswer
from clipfleet.ledger.jobs import Claim, FinishClaim, Lease, WorkerFacts

ME = WorkerFacts("me", "host", 2, ("demo",))
OTHER_WORKER = WorkerFacts("other", "host", 1, ("demo",))


@dataclass
class RecordingLedger:
    """Calls are recorded as tuples of words in `told`; claims and renewals have lists of their own."""

    claims: list[tuple[Lane, Claim]] = field(default_factory=list)
    finish_claims: list[FinishClaim] = field(default_factory=list)
    others: list[WorkerFacts] = field(default_factory=list)
    complete_answer: CompleteAnswer = CompleteAnswer.DONE
    words: dict[str, str] = field(default_factory=dict)  # of renewals, by chunk
    early_end: str = ""
    errors: dict[str, BaseException] = field(default_factory=dict)  # by call
    on_call: dict[str, Callable[[], object]] = field(default_factory=dict)
    told: list[tuple[str, ...]] = field(default_factory=list)
    asked: list[tuple[str, Sequence[Lane]]] = field(default_factory=list)  # tokens and lanes of claims
    renewed: list[list[str]] = field(default_factory=list)  # chunks, by renewal

    def offer(self, claim: Claim, lane: Lane = Lane.NORMAL, count: int = 1) -> None:
        self.claims += [(lane, claim)] * count

    def goes_away(self, *calls: str) -> None:
        self.errors.update(dict.fromkeys(calls, RedisUnavailableError("away")))

    def answers_from(self, call: str, time: int) -> None:
        """A call that fails does so no more from the given time on."""
        calls = itertools.count(1)
        self.on_call[call] = lambda: next(calls) < time or self.errors.pop(call, None)

    def _called(self, call: str) -> None:
        self.on_call.get(call, lambda: None)()
        if call in self.errors:
            raise self.errors[call].with_traceback(None)

    def claim(self, token: str, _seconds: float, lanes: Sequence[Lane], *_: object) -> Claim | None:
        self.asked.append((token, lanes))
        self._called("claim")
        found = next((one for one in self.claims if one[0] in lanes), None)
        if found is None:
            return None
        self.claims.remove(found)
        return found[1]

    def complete(self, claim: Claim, **facts: Any) -> CompleteAnswer:
        self._called("complete")
        self.told.append(("complete", claim.job_id, str(facts["ok"]), str(facts["failed"])))
        return self.complete_answer

    def release(self, _: Claim, kind: str, *, reason: str, outage_seconds: float) -> ReleaseAnswer:
        self._called("release")
        self.told.append((kind, reason))
        return ReleaseAnswer.RELEASED

    def fail(self, job_id: str, reason: str, *, ttl_seconds: int, holder: Claim | FinishClaim) -> None:
        self.told.append(("fail", job_id, reason))

    def workers(self) -> list[WorkerFacts]:
        self._called("workers")
        return [ME, *self.others]

    def renew(self, leases: Sequence[Lease], _seconds: float) -> list[RenewAnswer]:
        self.renewed.append([lease.chunk for lease in leases])
        self._called("renew")
        return [RenewAnswer(self.words.get(lease.chunk, "held")) for lease in leases]

    def last_early_end(self) -> str:
        self._called("last_early_end")
        return self.early_end

    def claim_finish(self, *_: object) -> FinishClaim | None:
        self._called("claim_finish")
        return self.finish_claims.pop(0) if self.finish_claims else None

    def postpone_finish(
        self, claim: FinishClaim, delay_seconds: float, reason: str = "", **limits: float
    ) -> PostponeAnswer:
        self._called("postpone_finish")
        self.told.append(("postpone", claim.job_id, f"{delay_seconds:g}", reason))
        assert not reason or limits.keys() == {"outage_seconds", "ttl_seconds", "is_lasting"}
        return PostponeAnswer.POSTPONED
