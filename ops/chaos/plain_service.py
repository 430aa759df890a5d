"""The plain worker's customer, and what its runs leave behind: see `ops.chaos.plain_worker`."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from clipfleet.s3.client import default_client, list_objects
from clipfleet_worker.machine.embedded.s3 import BUCKET
from ops.chaos.checker import Event, JobLeft, Row
from ops.chaos.customers import Wish
from ops.chaos.history import History
from ops.chaos.plain_worker import EVENTS, TASK, done_key, make_plain_app, part_name, rows_key
from ops.chaos.workload import JobPlan, OutputKind, plan_job

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0  # without news of a job: what is missing will not come any more


class PlainService:
    """See `ops.chaos.customers.Service`."""

    def __init__(self, redis_url: str, history: History) -> None:
        self._app = make_plain_app(redis_url)
        self._redis = connect(redis_url)
        self._history = history

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._redis.close()
        self._app.close()

    def plan(self, seed: int, number: int) -> JobPlan:
        """See the protocol. There are no retries of failed rows, and vectors only."""
        return replace(plan_job(seed, number), is_retried=False, task="embed")

    def fulfil(self, wish: Wish, heal: Callable[[], None]) -> None:
        """See the protocol. A program that dies while it submits is not tried: a message is all there is."""
        plan = wish.plan
        self._history.note("submit", job=plan.job_id, items=len(plan.items), output=plan.output)
        if plan.output is OutputKind.FOLDER:
            (wish.folder / plan.job_id).mkdir()
        for order in _orders(wish):
            self._publish(order)
        self._history.note("plain_ended", job=plan.job_id, done=self._wait(plan))

    def _publish(self, order: dict[str, Any]) -> None:
        """Retry until the broker has taken it; a failed attempt may have been delivered."""
        while True:
            try:
                self._app.send_task(TASK, args=[order], queue=keys.QUEUE)
                return
            except (KombuError, RedisError, OSError) as error:
                self._history.note("customer_waits", job=order["job_id"], error=str(error)[:200])
                time.sleep(_POLL_SECONDS)

    def _wait(self, plan: JobPlan) -> int:
        chunks, done, since = _chunks(plan), 0, time.monotonic()
        while done < chunks and time.monotonic() - since < _PATIENCE_SECONDS:
            time.sleep(_POLL_SECONDS)
            try:
                now_done = int(self._redis.get(done_key(plan.job_id)) or 0)
            except RedisError:
                continue
            if now_done != done:
                done, since = now_done, time.monotonic()
        return done


def survey(redis_url: str, folder: Path, plans: Iterable[JobPlan]) -> list[tuple[JobPlan, JobLeft]]:
    """What is left of each job."""
    jobs = []
    with connect(redis_url) as client:
        for plan in plans:
            lines = client.lrange(rows_key(plan.job_id), 0, -1)
            if plan.output is not OutputKind.REDIS:
                lines = list(_part_lines(folder / "out" / plan.job_id, plan))
            rows = sorted(map(_row, lines), key=lambda row: row.item_index)
            is_over = int(client.get(done_key(plan.job_id)) or 0) >= _chunks(plan)
            state = "completed_with_errors" if plan.failed(0) else "completed"
            jobs.append((plan, JobLeft(state if is_over else "running", 0, rows)))
    return jobs


def events(redis_url: str) -> list[Event]:
    """Announcements of the ends of jobs."""
    with connect(redis_url) as client:
        entries: Any = client.xrange(EVENTS)
    return [Event(fields["job_id"], 0, "") for _, fields in entries]


def _orders(wish: Wish) -> Iterator[dict[str, Any]]:
    plan = wish.plan
    with wish.manifest.open(newline="") as file:
        items = [
            {"index": index, "id": line["id"], "uri": line["url"]}
            for index, line in enumerate(csv.DictReader(file))
        ]
    place = BUCKET if plan.output is OutputKind.S3 else str(wish.folder / plan.job_id)
    for chunk_id in range(_chunks(plan)):
        first = chunk_id * plan.chunk_size
        yield {
            "job_id": plan.job_id,
            "chunk_id": chunk_id,
            "chunks": _chunks(plan),
            "output": plan.output.value,
            "place": place,
            "items": items[first : first + plan.chunk_size],
        }


def _chunks(plan: JobPlan) -> int:
    return -(-len(plan.items) // plan.chunk_size)


def _part_lines(folder: Path, plan: JobPlan) -> Iterator[str]:
    names: Sequence[str] = [part_name(chunk_id) for chunk_id in range(_chunks(plan))]
    if plan.output is OutputKind.FOLDER:
        for name in names:
            if (folder / name).exists():
                yield from (folder / name).read_text().splitlines()
        return
    client = default_client()
    for entry in list_objects(client, BUCKET, f"{plan.job_id}/"):
        body: bytes = client.get_object(Bucket=BUCKET, Key=entry.key)["Body"].read()
        yield from body.decode().splitlines()


def _row(line: str) -> Row:
    values = json.loads(line)
    return Row(
        values["item_index"], values["item_id"], values["error_code"], values.get("content_hash"),
        values.get("embedding") is not None,
    )  # fmt: skip
