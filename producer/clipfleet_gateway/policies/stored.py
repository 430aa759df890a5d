"""A policy with what each request needs of it, computed once. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from clipfleet.contract.policies import JobPolicy, Policy

SHOWN_DIGITS = 12  # of a hash, where people read it


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """Equal to others of the same hash, in which the name counts."""

    sha256: str
    policy: Policy = field(compare=False)
    of_job: JobPolicy = field(compare=False)  # what a job carries of it

    @classmethod
    def of(cls, policy: Policy) -> Self:
        """Compute what is needed of it."""
        of_job = policy.of_a_job()
        return cls(of_job.sha256, policy, of_job)

    @property
    def name(self) -> str:
        """What requests call it, whichever version of it is current."""
        return self.policy.name

    @property
    def full_name(self) -> str:
        """What requests call this version."""
        return f"{self.name}@{self.sha256[:SHOWN_DIGITS]}"


@dataclass(frozen=True, slots=True)
class Versions:
    """The hashes of all policies of one name."""

    current: str
    all: tuple[str, ...]

    def of_digits(self, digits: str) -> str | None:
        """The only hash that begins with these digits; the current one for no digits."""
        if not digits:
            return self.current
        found = [one for one in self.all if one.startswith(digits)]
        return found[0] if len(found) == 1 else None
