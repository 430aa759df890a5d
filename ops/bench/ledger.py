"""The throughput of the ledger: chunks claimed and completed per second on an embedded Valkey with AOF.

    python -m ops.bench.ledger [--chunks 100000] [--jobs 1,100] [--workers 32]

`cheap` clients are the connections of one process, each with one call in flight, like a worker's. They send
what `Ledger` sends, recorded once and filled in, so that the server is the limit and not Python. `Ledger`
clients are processes that call `Ledger` itself. CPU is the time of server and clients per chunk; a script's
time is the server's own count. Each chunk is a claim and a complete, of sealed jobs.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis

from clipfleet.contract.bottleneck import Meter, Meters, Step, device_meter
from clipfleet.contract.jobs import Lane
from clipfleet.ledger.answers import CompleteAnswer
from clipfleet.ledger.jobs import Claim, Ledger
from clipfleet.redis.connection import connect
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from ops.bench.report import Report, Table, bench_parser, positive, positives
from tests.support.ledger import MODEL, make_job

MIN_CHUNKS_PER_SECOND = 5000.0

_LEASE_SECONDS = 30.0
_ITEMS = 512
_CHUNKS_PER_FILE = 256
_WORK_SECONDS = {"fetch": 12.5, "decode": 3.2, "encode": 4.1, "write": 0.05}
_METERS = Meters(
    {
        Step.ITEMS: 4.2, Step.WRITE: 0.05, Meter.FETCHING: 810.5, Meter.BEYOND: 95.5,
        Meter.DECODING: 3.2, device_meter("cpu", "bf16"): 4.2, Meter.DECODE_CAPACITY: 8.4,
        Meter.DECODE_BUSY: 3.1, Meter.FORWARD_BUSY: 4.1,
    }
)  # fmt: skip
_LANES = tuple(Lane)
_CLIENTS_SECONDS = 5.0
_COLUMNS = {
    "clients": "<12", "jobs": ">5d", "chunks": ">8,d", "chunks/s": ">9,.0f", "server CPU us": ">14.0f",
    "client CPU us": ">14.0f", "claim us": ">9.1f", "complete us": ">12.1f",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """Chunks of one run, and their cost."""

    chunks: int
    seconds: float
    client_cpu_seconds: float


class Recorder(redis.Redis):
    """A connection that records calls and sends nothing."""

    def __init__(self) -> None:
        super().__init__(decode_responses=True)
        self.words: tuple[Any, ...] = ()
        self.answer: Any = []

    def execute_command(self, *args: Any, **_: Any) -> Any:
        """Called by every method of a client."""
        self.words = args
        return self.answer


class CallShape:
    """A call as bytes of the protocol, with blanks for the words that vary."""

    def __init__(self, words: Sequence[Any], blanks: Sequence[str]) -> None:
        """Nothing is filled in yet.

        Args:
            words: the command.
            blanks: words of it to be filled in, in their order.
        """
        self._pieces: list[bytes] = [b"*%d\r\n" % len(words)]
        left = list(blanks)
        for word in words:
            if left and str(word) == left[0]:
                self._pieces.append(b"")
                left.pop(0)
            else:
                self._pieces[-1] += _bulk(str(word).encode())
        if left:
            raise ValueError(f"{left} are not among {words}")

    def filled(self, *values: bytes) -> bytes:
        """The bytes to be sent."""
        first, *others = self._pieces
        return first + b"".join(_bulk(value) + piece for value, piece in zip(values, others, strict=True))


def _bulk(word: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(word), word)


def call_shapes() -> tuple[CallShape, CallShape]:
    """What a `Ledger` sends for a claim (blank: token), and for a complete (job, chunk, token)."""
    recorder = Recorder()
    ledger = Ledger("redis://", client=recorder)
    ledger.claim("TOKEN", _LEASE_SECONDS, _LANES, [MODEL])
    claim = CallShape(recorder.words, ["TOKEN"])
    recorder.answer = CompleteAnswer.DONE
    held = Claim("TOKEN", "JOB", 987654321, 0, 0, 0, 0, "", 0, 0, True, _ITEMS)
    complete_chunk(ledger, held)
    return claim, CallShape(recorder.words, ["JOB", "987654321", "TOKEN"])


def complete_chunk(ledger: Ledger, claim: Claim) -> CompleteAnswer:
    """Complete a chunk whose items are all ok, as a worker does."""
    return ledger.complete(claim, ok=_ITEMS, failed=0, codes={}, work_seconds=_WORK_SECONDS, meters=_METERS)


class Connection:
    """One worker's connection, with at most one call in flight."""

    def __init__(self, url: str) -> None:
        options = connect(url).connection_pool.connection_kwargs
        self._socket = socket.create_connection((options["host"], options["port"]))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send(b"*2\r\n$4\r\nAUTH\r\n" + _bulk(options["password"].encode()))
        self.answer()

    def send(self, call: bytes) -> None:
        """Begin a call."""
        self._socket.sendall(call)

    def answer(self) -> list[bytes]:
        """The words of its answer: a status, a text or a list of texts."""
        lines: list[bytes] = []
        data = b""
        while not _is_whole(lines):
            more = self._socket.recv(65536)
            if not more:
                raise SystemExit("the server closed a connection")
            data += more
            lines = data.split(b"\r\n")
        if lines[0].startswith(b"-"):
            raise SystemExit(lines[0].decode())
        return (
            lines[:1] if lines[0].startswith(b"+") else lines[2:-1:2] if lines[0][:1] == b"*" else lines[1:2]
        )

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def _is_whole(lines: Sequence[bytes]) -> bool:
    """Whether these lines are a whole answer; the last one is empty."""
    if len(lines) < 2:
        return False
    kind = lines[0][:1]
    count = 2 * int(lines[0][1:]) + 1 if kind == b"*" else 2 if kind == b"$" else 1
    return len(lines) > count


def work_cheaply(url: str, workers: int) -> Run:
    """Claim and complete until nothing is left, over several connections in turn."""
    claim, complete = call_shapes()
    with ExitStack() as stack:
        connections = [Connection(url) for _ in range(workers)]
        for connection in connections:
            stack.callback(connection.close)
        began, cpu = time.perf_counter(), time.process_time()
        chunks = 0
        while connections:
            tokens = [uuid4().hex.encode() for _ in connections]
            for connection, token in zip(connections, tokens, strict=True):
                connection.send(claim.filled(token))
            held = []
            for connection, token in zip(connections, tokens, strict=True):
                if words := connection.answer():
                    connection.send(complete.filled(words[0], words[1], token))
                    held.append(connection)
            for connection in held:
                word = connection.answer()[0]
                if word not in (b"done", b"finishing"):
                    raise SystemExit(f"a complete was answered with {word.decode()}")
            chunks += len(held)
            connections = held
        return Run(chunks, time.perf_counter() - began, time.process_time() - cpu)


def work_by_ledger(url: str) -> Run:
    """Claim and complete with the real client, for some seconds."""
    ledger = Ledger(url)
    began, cpu = time.perf_counter(), time.process_time()
    chunks = 0
    while time.perf_counter() - began < _CLIENTS_SECONDS:
        claim = ledger.claim(uuid4().hex, _LEASE_SECONDS, _LANES, [MODEL])
        if claim is None:
            break
        complete_chunk(ledger, claim)
        chunks += 1
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    ledger.close()
    return Run(chunks, seconds, cpu_seconds)


def work_in_processes(url: str, clients: int) -> Run:
    """The same in several processes at once."""
    with multiprocessing.get_context("spawn").Pool(clients) as pool:
        runs = pool.map(work_by_ledger, [url] * clients, chunksize=1)
    return Run(
        sum(run.chunks for run in runs),
        max(run.seconds for run in runs),
        sum(run.client_cpu_seconds for run in runs),
    )


class Server:
    """An embedded Valkey, emptied before each run."""

    def __init__(self, server: EmbeddedValkey) -> None:
        self.url = server.url
        self.client = connect(server.url)

    def fill(self, jobs: int, chunks: int) -> None:
        """Submit a number of jobs that share a number of chunks."""
        self.client.flushall()
        ledger = Ledger(self.url)
        each = chunks // jobs
        for number in range(jobs):
            job = make_job(f"job-{number}")
            ledger.submit(job)
            for first in range(0, each, _CHUNKS_PER_FILE):
                count = min(_CHUNKS_PER_FILE, each - first)
                ledger.stage(job.job_id, first, count, count * _ITEMS)
            ledger.seal(job.job_id, each, each * _ITEMS)
        ledger.close()
        self.client.config_resetstat()

    def cpu_seconds(self) -> float:
        """User and system time of the server."""
        facts = self.client.info("cpu")
        return float(facts["used_cpu_user"] + facts["used_cpu_sys"])

    def script_microseconds(self) -> tuple[float, float]:
        """Time of a claim and of a complete by the server's own count, each on a small job."""
        found = []
        self.fill(1, 2 * _CHUNKS_PER_FILE)
        ledger = Ledger(self.url)
        claims = []
        for _ in range(_CHUNKS_PER_FILE):
            claims.append(ledger.claim(uuid4().hex, _LEASE_SECONDS, _LANES, [MODEL]))
        found.append(self._statistics()["evalsha"]["usec_per_call"])
        self.client.config_resetstat()
        for claim in claims:
            if claim is not None:
                complete_chunk(ledger, claim)
        found.append(self._statistics()["evalsha"]["usec_per_call"])
        ledger.close()
        return found[0], found[1]

    def commands(self, chunks: int) -> list[tuple[str, float, float]]:
        """(command, calls per chunk, microseconds per call) since `fill`, the most expensive first."""
        found = [
            (name, facts["calls"] / chunks, facts["usec_per_call"])
            for name, facts in self._statistics().items()
            if facts["calls"] >= chunks / 2
        ]
        return sorted(found, key=lambda row: -row[1] * row[2])

    def _statistics(self) -> dict[str, dict[str, float]]:
        facts: dict[str, dict[str, float]] = self.client.info("commandstats")
        return {name.removeprefix("cmdstat_"): values for name, values in facts.items()}


def measure(report: Report, table: Table, server: Server, jobs: int, chunks: int, workers: int) -> None:
    """Cheap clients on a full ledger."""
    scripts = server.script_microseconds()
    server.fill(jobs, chunks)
    before = server.cpu_seconds()
    run = work_cheaply(server.url, workers)
    cpu = server.cpu_seconds() - before
    if run.chunks != chunks // jobs * jobs:
        raise SystemExit(f"{run.chunks} of {chunks} chunks were done")
    row(table, f"{workers} cheap", jobs, run, cpu, scripts)
    report.fact(f"commands per chunk, {jobs} jobs", server.commands(run.chunks))
    report.goal(
        f"chunks claimed and completed per second, {jobs} jobs",
        run.chunks / run.seconds,
        at_least=MIN_CHUNKS_PER_SECOND,
    )


def row(
    table: Table, clients: str, jobs: int, run: Run, server_cpu: float, scripts: tuple[float, float]
) -> None:
    table.row(
        clients, jobs, run.chunks, run.chunks / run.seconds, server_cpu / run.chunks * 1e6,
        run.client_cpu_seconds / run.chunks * 1e6, *scripts,
    )  # fmt: skip


def main() -> int:
    """Print the tables; return 1 if the goal is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--chunks", type=positive, default=100_000)
    parser.add_argument(
        "--jobs", type=positives, default="1,100", help="numbers of jobs that share the chunks"
    )
    parser.add_argument("--workers", type=positive, default=32, help="connections of the cheap client")
    parser.add_argument(
        "--clients", type=positive, default=os.cpu_count() or 1, help="processes with a Ledger"
    )
    options = parser.parse_args()
    if max(options.jobs) > options.chunks:
        parser.error(f"{options.chunks} chunks are not enough for {max(options.jobs)} jobs")
    with (
        Report("ledger", options.json) as report,
        tempfile.TemporaryDirectory(prefix="clipfleet-bench-") as folder,
        EmbeddedValkey(Path(folder) / "valkey") as valkey,
    ):
        server = Server(valkey)
        table = report.table(_COLUMNS)
        for jobs in options.jobs:
            measure(report, table, server, jobs, options.chunks, options.workers)
        scripts = server.script_microseconds()
        server.fill(1, options.chunks)
        before = server.cpu_seconds()
        run = work_in_processes(server.url, options.clients)
        row(table, f"{options.clients} Ledger", 1, run, server.cpu_seconds() - before, scripts)
        commands = report.table(
            {"command": "<18", "calls per chunk": ">15.1f", "us per call": ">11.2f"}, "what a chunk costs"
        )
        for name, calls, microseconds in server.commands(run.chunks):
            commands.row(name, calls, microseconds)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
