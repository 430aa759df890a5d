"""Which tests run for a mutant, and in which order: those first that are likely to find it, and fast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from threading import Lock

from ops.mutants.hosts import Ended
from ops.mutants.places import Mutant, block_name

_PATIENCE, _LEAST_LIMIT_SECONDS = 5, 30.0  # another program may have the cores


class Order:
    """Knows from a survey what each test runs, and learns which tests find the mutants of a script."""

    def __init__(self, survey: Sequence[Ended]) -> None:
        self._tests = sorted((test for test in survey if test.blocks), key=lambda test: test.seconds)
        self._kills: dict[str, Counter[str]] = {}
        self._lock = Lock()

    @property
    def tests(self) -> int:
        """How many run anything of the scripts."""
        return len(self._tests)

    def limits(self, mutant: Mutant) -> dict[str, float]:
        """The tests that run the place of a mutant, in order, and the seconds that each may take.

        A fragment's top level belongs to all scripts that use it: any test may run it.
        """
        name = block_name(mutant.script, mutant.block)
        ours = [one for one in self._tests if name in one.blocks]
        if mutant.block == 0 and not ours:
            ours = self._tests
        with self._lock:
            in_script, in_block = self._kills.get(mutant.script, Counter()), self._kills.get(name, Counter())
            ours = sorted(
                ours, key=lambda one: (in_block[one.test] + in_script[one.test] / 2) * -_weight(one)
            )
        return {one.test: _LEAST_LIMIT_SECONDS + _PATIENCE * one.seconds for one in ours}

    def learn(self, mutant: Mutant, test: str) -> None:
        """Try a test that has killed a mutant earlier with the next ones; '' is none."""
        with self._lock:
            for name in (mutant.script, block_name(mutant.script, mutant.block)):
                self._kills.setdefault(name, Counter())[test] += 1


def _weight(test: Ended) -> float:
    return 1 / max(test.seconds, 0.01)
