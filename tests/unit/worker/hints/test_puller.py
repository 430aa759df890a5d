"""An idle worker looks for work that no hint announces."""

from __future__ import annotations

import pytest

from clipfleet_worker.hints.puller import Puller
from clipfleet_worker.process.watchdog import Pulse


class Work:
    """So many chunks; a slot is free as often as is said."""

    def __init__(self, chunks: int, free_slots: int) -> None:
        self.chunks = chunks
        self.pulls = 0
        self.pulls_at_finish: list[int] = []  # how many there were whenever jobs were looked for that end
        self._free_slots = free_slots

    def finish_job(self) -> bool:
        self.pulls_at_finish.append(self.pulls)
        return False

    def work(self) -> bool:
        self.pulls += 1
        self.chunks -= 1
        return self.chunks >= 0

    def has_idle_slot(self, _seconds: float) -> bool:
        self._free_slots -= 1
        return self._free_slots >= 0


PULLS = {  # chunks, free slots, pulls
    "nothing is found": (0, 9, 1),
    "what was found once is looked for again": (3, 9, 4),
    "until hints have the slots": (3, 2, 2),
    "hints have them already": (3, 0, 0),
}


@pytest.mark.parametrize(("chunks", "free_slots", "pulls"), PULLS.values(), ids=PULLS)
def test_work_is_looked_for_as_long_as_there_is_some(chunks: int, free_slots: int, pulls: int) -> None:
    work = Work(chunks, free_slots)

    Puller(work, work, Pulse("puller")).pull()  # type: ignore[arg-type]  # doubles

    assert work.pulls == pulls
    assert work.pulls_at_finish[:pulls] == list(range(pulls))  # jobs are finished meanwhile
