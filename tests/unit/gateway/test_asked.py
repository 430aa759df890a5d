"""Notes of repeated requests are kept for 30 days."""

from __future__ import annotations

from datetime import timedelta

from clipfleet.outputs.folder import FolderOutput
from clipfleet_gateway.jobs.record import new_job_id
from clipfleet_gateway.jobs.store import JobStore
from clipfleet_gateway.keys.asked import forget
from tests.support.batches import Desk, jsonl, line

TURNS = 256  # until every note was looked at
TURN = timedelta(minutes=10)


def forgotten(desk: Desk) -> None:
    """Sweep until every note was looked at; the clock stands where it stood then."""
    start = desk.now()
    for turn in range(TURNS):
        forget(desk.place, "mine", start - TURN * turn)


def test_notes_are_forgotten_after_thirty_days(place: FolderOutput) -> None:
    desk, jobs = Desk(place), JobStore(place)
    lines = jsonl(line("a"))

    def ask() -> tuple[str, ...]:
        return (
            desk.begin(lines).id,
            desk.begin(lines, idempotency_key="night").id,
            jobs.id_for("mine", new_job_id(desk.now()), "night"),
        )

    place.create("asked/mine/key-00strange.json", b"x")
    before = ask()
    desk.now.later(days=29)
    forgotten(desk)
    assert ask() == before

    desk.now.later(days=4)
    forgotten(desk)
    assert [*place.names("asked/mine/")] == ["asked/mine/key-00strange.json"]
    assert not {*before} & {*ask()}
