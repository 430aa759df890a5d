"""A worker as one would write it with Celery alone: what the ledger is compared with.

An honest one: late acks, the best settings that are known for Redis as a broker (clipfleet's own), a
visibility timeout not much longer than the longest chunk, tries without end while the world is away, parts
under fixed names that are written whole, rows and counter in one transaction. A task is a chunk; the
message is all that knows of it.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from celery import Celery
from kombu.entity import Queue

from clipfleet.contract.jobs import DecodeRoute, ErrorCode
from clipfleet.hints import REDIS_TRANSPORT_OPTIONS, make_app
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from clipfleet.s3.client import default_client
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.failures import ItemFailure
from ops.chaos.armed import ARMED, ArmedCrashPoints
from ops.chaos.claims import CLAIMS_FILE, note
from ops.chaos.crash_points import CrashPoint
from ops.chaos.workload import OutputKind

TASK = "plain.chunk"
EVENTS = "plain:events"
_SLOTS = 8
_VISIBILITY_SECONDS = 10  # a chunk takes about one
_FETCH_SECONDS = 30.0
_RETRY_SECONDS = 2  # less than the visibility timeout: else a waiting message is delivered once more
_MAX_PIXELS = 1_000_000


def rows_key(job_id: str) -> str:
    """List of a job's rows as JSON, where they go to Redis."""
    return f"plain:{job_id}:rows"


def done_key(job_id: str) -> str:
    """Counter of a job's chunks that are done."""
    return f"plain:{job_id}:done"


def part_name(chunk_id: int) -> str:
    """Name of a chunk's rows in a folder or bucket."""
    return f"part-{chunk_id:08d}.jsonl"


def make_plain_app(redis_url: str) -> Celery:
    """The app of producers and workers: clipfleet's settings where they are Celery's own, see there."""
    app = make_app(redis_url)
    app.conf.update(
        broker_transport_options={
            **REDIS_TRANSPORT_OPTIONS,
            "visibility_timeout": _VISIBILITY_SECONDS,
            "unacked_restore_interval": 1,
        },
        worker_pool="threads",
        worker_concurrency=_SLOTS,
        worker_prefetch_multiplier=1,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_queues=[Queue(keys.QUEUE)],  # type: ignore[no-untyped-call]  # kombu has no types
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_prefetch_count_reduction=True,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


def run_worker(folder: Path) -> int:
    """Take chunks until SIGTERM."""
    redis_url = os.environ["CLIPFLEET_REDIS_URL"]
    app = make_plain_app(redis_url)
    chunk = PlainChunk(redis_url, ArmedCrashPoints(folder / ARMED))

    @app.task(
        name=TASK,
        shared=False,
        autoretry_for=(Exception,),
        max_retries=None,
        default_retry_delay=_RETRY_SECONDS,
    )  # type: ignore[untyped-decorator]  # Celery has no types
    def work(order: Mapping[str, Any]) -> None:
        chunk.work(order)

    worker = app.Worker(
        quiet=True, loglevel="INFO", without_gossip=True, without_mingle=True, without_heartbeat=True
    )
    from celery import signals

    on_ready = partial(_touch, Path(os.environ["CLIPFLEET_READY_FILE"]))
    signals.worker_ready.connect(on_ready, weak=False)
    worker.start()
    return int(worker.exitcode or 0)


def _touch(path: Path, **_: object) -> None:
    path.touch()


class PlainChunk:
    """What the task does."""

    def __init__(self, redis_url: str, crash_points: ArmedCrashPoints) -> None:
        self._redis = connect(redis_url)
        self._reach = crash_points.reach
        self._decoder = Decoder(_MAX_PIXELS)
        self._encoder = FakeEncoder()

    def work(self, order: Mapping[str, Any]) -> None:
        """Label the items of a chunk, write its rows, count it; the last one announces the job's end."""
        job_id, chunk_id = order["job_id"], order["chunk_id"]
        note(Path(os.environ[CLAIMS_FILE]), job_id, chunk_id)
        self._reach(CrashPoint.AFTER_CLAIM)
        rows = [json.dumps(self._row(item)) for item in order["items"]]
        self._reach(CrashPoint.BEFORE_WRITE)
        done = self._write(order, rows)
        self._reach(CrashPoint.AFTER_COMPLETE)
        if done == order["chunks"]:
            self._reach(CrashPoint.MID_FINISH)
            self._redis.xadd(EVENTS, {"job_id": job_id})
        self._reach(CrashPoint.BEFORE_ACK)

    def _write(self, order: Mapping[str, Any], rows: list[str]) -> int:
        """Returns how many chunks are done."""
        job_id, data = order["job_id"], "".join(f"{row}\n" for row in rows).encode()
        with self._redis.pipeline() as transaction:
            match OutputKind(order["output"]):
                case OutputKind.FOLDER:
                    self._write_file(Path(order["place"]) / part_name(order["chunk_id"]), data)
                case OutputKind.S3:
                    key = f"{job_id}/{part_name(order['chunk_id'])}"
                    self._reach(CrashPoint.MID_WRITE)
                    default_client().put_object(Bucket=order["place"], Key=key, Body=data)
                case OutputKind.REDIS:
                    self._reach(CrashPoint.MID_WRITE)
                    transaction.rpush(rows_key(job_id), *rows)
            self._reach(CrashPoint.AFTER_WRITE)
            transaction.incr(done_key(job_id))
            return int(transaction.execute()[-1])

    def _write_file(self, path: Path, data: bytes) -> None:
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_bytes(data)
        self._reach(CrashPoint.MID_WRITE)
        scratch.replace(path)

    def _row(self, item: Mapping[str, Any]) -> dict[str, Any]:
        row = {"item_index": item["index"], "item_id": item["id"], "error_code": None}
        try:
            data = self._fetch(item["uri"])
            pixels = self._decoder.decode(data, self._encoder.pixel_spec, DecodeRoute.FAST).pixels
        except ItemFailure as failure:
            return {**row, "error_code": failure.error.code.value}
        features = self._encoder.encode_images(np.stack([pixels]))[0]
        return {**row, "content_hash": sha256(data).hexdigest(), "embedding": features.tolist()}

    def _fetch(self, uri: str) -> bytes:
        try:
            if not uri.startswith("http://"):
                return Path(uri).read_bytes()
            with urllib.request.urlopen(uri, timeout=_FETCH_SECONDS) as answer:  # noqa: S310 - our own site
                self._reach(CrashPoint.MID_FETCH)
                return bytes(answer.read())
        except (FileNotFoundError, urllib.error.HTTPError) as error:
            raise ItemFailure(ErrorCode.NOT_FOUND, str(error)) from error
