"""Values that have no business in the ledger, put there with a producer's rights.

They go into keys of jobs of their own, which may fail, or never end. Everybody else's must not notice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clipfleet.client import Client
from clipfleet.contract.jobs import Lane
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from clipfleet.settings import Settings
from clipfleet.submit.options import JobOptions
from ops.chaos.workload import ItemKind, ItemPlan, JobPlan, OutputKind

_CHUNKS = 10
_CHUNK_SIZE = 4
_ITEMS = _CHUNKS * _CHUNK_SIZE  # as many as there are images
_KEEP_SECONDS = 86_400
_STRANGER = "{job}-x"  # a job that nobody submitted


def _fields(suffix: str, *names: str) -> tuple[str, ...]:
    return ("HSET", suffix, *(part for name in names for part in (name, "x")))


def _stranger_in(zset: str, *state: str) -> tuple[tuple[str, ...], ...]:
    """A job of this state, or a string in its place, in a set that all workers look at."""
    made = ("HSET", _STRANGER, "state", *state) if state else ("SET", _STRANGER, "x")
    return made, ("EXPIRE", _STRANGER, str(_KEEP_SECONDS)), ("ZADD", zset, "0", _STRANGER)


# Commands; the second word is a suffix of the job's key, a whole key, or the key of a stranger.
PLANTINGS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "losses": (_fields(keys.TROUBLES, *(f"{chunk}:losses" for chunk in range(_CHUNKS))),),
    "a string to finish": _stranger_in(keys.FINISHING),
    "a state to finish": _stranger_in(keys.FINISHING, "finishing"),
    "a string to sweep": _stranger_in(keys.SWEEPS),
    "counts": (_fields("", "ok", "failed", "ran", "ran_failed", "done_chunks"),),
    "next chunk": (_fields("", "next_chunk", "staged_chunks"),),
    "staged items": (_fields("", "staged_items", "carried"),),
    "codes": (_fields(keys.CODES, "not_found", "broken_image"),),
    "a string for a stream": (("DEL", keys.STREAM), ("SET", keys.STREAM, "x", "EX", str(_KEEP_SECONDS))),
    "a string for the owners": (("DEL", keys.OWNERS), ("SET", keys.OWNERS, "x", "EX", str(_KEEP_SECONDS))),
    "a string for the job": (("DEL", ""), ("SET", "", "x", "EX", str(_KEEP_SECONDS))),
    "turns": (("SET", keys.TURNS, "x", "EX", str(_KEEP_SECONDS)),),
    "reconciled": (("SET", keys.RECONCILED, "x", "EX", str(_KEEP_SECONDS)),),
}


class Planter:
    """Submits jobs, and spoils them at once. One thread only.

    Attributes:
        job_ids: of those jobs, and of the strangers.
    """

    def __init__(
        self, redis_url: Callable[[], str], folder: Path, write_manifest: Callable[[JobPlan], Path]
    ) -> None:
        """Nothing is submitted yet.

        Args:
            redis_url: as only the harness sees the server, asked each time.
            folder: of the outputs.
            write_manifest: writes the source of a job.
        """
        self._redis_url = redis_url
        self._folder = folder
        self._write_manifest = write_manifest
        self.job_ids: list[str] = []

    def plant(self, number: int, name: str) -> None:
        """Submit a job that takes some seconds, and put in what `PLANTINGS` has under this name."""
        job_id = f"evil-{number:05d}"
        stranger = _STRANGER.format(job=job_id)
        self.job_ids += [job_id, stranger]
        plan = JobPlan(
            job_id=job_id, task="embed", output=OutputKind.FOLDER, part_format="parquet", lane="high",
            chunk_size=_CHUNK_SIZE, is_retried=False,
            items=tuple(ItemPlan(f"item-{index}", ItemKind.URL, index) for index in range(_ITEMS)),
        )  # fmt: skip
        options = JobOptions(
            output=self._folder / job_id, model="demo", lane=Lane.HIGH, chunk_size=_CHUNK_SIZE, job_id=job_id
        )
        with Client(Settings(redis_url=self._redis_url())) as client:
            client.embed(self._write_manifest(plan), options=options)
        with connect(self._redis_url()) as redis:
            for verb, where, *values in PLANTINGS[name]:
                redis.execute_command(
                    verb, _key(where, job_id), *(_named(value, stranger) for value in values)
                )


def _key(where: str, job_id: str) -> str:
    if where == _STRANGER:
        return keys.job(where.format(job=job_id))
    return where if where.startswith(f"{keys.PREFIX}:") else keys.job(job_id, where)


def _named(value: str, stranger: str) -> str:
    return stranger if value == _STRANGER else value
