"""A real server and real workers in processes of their own, for end-to-end tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr

from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import JobStatus
from clipfleet.redis.connection import connect
from clipfleet.settings import Settings
from tests.support.documents import ROOT
from tests.support.leftovers import MARK, left_by_jobs, left_in_redis, processes_marked
from tests.support.services import broker_settings, ledger_server
from tests.support.waiting import wait_until

_START_SECONDS = 120.0
_BIN = Path(sys.executable).parent
WORKER_PROGRAM = ("clipfleet_worker", "run")


@dataclass
class WorkerProcess:
    """A worker started by `Cluster.start_worker`."""

    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL, as if the machine had lost power."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP, as if the virtual machine were paused."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def terminate(self, seconds: float = 60.0) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(seconds)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


class Cluster:
    """One server, any number of workers, and the command line."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.server = ledger_server(folder / "service")
        self.workers: list[WorkerProcess] = []
        self._programs: list[subprocess.Popen[str]] = []
        self.settings = dict(settings or {})  # of the programs started from now on
        self._broker = ExitStack()
        self._mark = str(folder)
        self._client: Client | None = None

    def __enter__(self) -> Self:
        self.settings = self._broker.enter_context(broker_settings()) | self.settings
        self.server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._check_outputs()
        finally:
            if self._client is not None:
                self._client.close()
            started: list[subprocess.Popen[Any]] = [*self._programs, *(one.process for one in self.workers)]
            for process in started:
                process.kill()
                process.wait()
        try:
            if kind is None:
                wait_until(lambda: not processes_marked(self._mark), "no child process is left")
                assert left_in_redis(self.server.url) == []
        finally:
            self.server.stop()
            self._broker.close()

    def _check_outputs(self) -> None:
        """With a live worker that sweeps, ended jobs leave nothing but results."""
        for worker in self.living_workers():
            worker.thaw()
        if self.living_workers():
            wait_until(lambda: not left_by_jobs(self.server.url), "ended jobs have left nothing")

    def environment(self) -> dict[str, str]:
        """The developer's environment without its settings, plus this cluster's."""
        ours = ("CLIPFLEET_", "AWS_", "OTEL_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {
            **clean,
            "CLIPFLEET_REDIS_URL": self.server.url,
            "CLIPFLEET_FILE_ROOTS": str(self.folder),
            "CLIPFLEET_OUTPUT_ROOTS": str(self.folder),
            "CLIPFLEET_MODELS": "demo",
            "CLIPFLEET_ALLOW_PRIVATE": "127.0.0.0/8",
            "CLIPFLEET_FETCH_ATTEMPTS": "2",  # what always fails is given up soon
            # Several workers share few cores here: with a thread per core each would wait for the others.
            "OMP_NUM_THREADS": "1",
            # OpenVINO converts the model at each worker's start: most tests do not need it.
            "CLIPFLEET_BACKEND": "torch",
            MARK: self._mark,
            **self.settings,
        }

    def client_settings(self) -> Settings:
        """Settings of a producer in this process."""
        broker_url = self.settings.get("CLIPFLEET_BROKER_URL")
        return Settings(
            redis_url=SecretStr(self.server.url), broker_url=SecretStr(broker_url) if broker_url else None
        )

    @property
    def client(self) -> Client:
        """A producer in this process, as long as the cluster lives."""
        if self._client is None:
            self._client = Client(self.client_settings())
        return self._client

    def embed(self, source: Any, output: Any = None, **options: Any) -> JobHandle:
        """Submit a job of the demo model; without an output its rows stay in Redis."""
        return self.client.embed(source, options=JobOptions(output=output, model="demo", **options))

    def status(self, job_id: str) -> JobStatus:
        """Without the command line, which takes a second to start."""
        return self.client.job(job_id).status()

    def rows(self, where: str | Path) -> list[dict[str, Any]]:
        """Rows of a job or an output as the command line prints them."""
        result = self.run("results", where, "--format", "jsonl")
        assert result.returncode == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    def living_workers(self) -> list[WorkerProcess]:
        return [worker for worker in self.workers if worker.process.poll() is None]

    def stop_workers(self) -> None:
        for worker in self.living_workers():
            assert worker.terminate() == 0, worker.log()

    def living_worker(self) -> WorkerProcess:
        """A worker, started if there is none."""
        return next(iter(self.living_workers()), None) or self.start_worker()

    def start_worker(
        self, settings: Mapping[str, str] | None = None, *, program: Sequence[str] = WORKER_PROGRAM
    ) -> WorkerProcess:
        """Start a worker and wait until it takes work."""
        worker = self.launch_worker(settings, program=program)
        self.wait_ready(worker)
        return worker

    def wait_ready(self, worker: WorkerProcess) -> None:
        """Wait until a launched worker takes work."""
        ready = self._ready_file(self.workers.index(worker))
        wait_until(
            lambda: ready.exists() or worker.process.poll() is not None, "the worker is ready", _START_SECONDS
        )
        assert worker.process.poll() is None, worker.log()

    def launch_worker(
        self, settings: Mapping[str, str] | None = None, *, program: Sequence[str] = WORKER_PROGRAM
    ) -> WorkerProcess:
        """Start a worker without waiting; `program` is a module and its arguments."""
        number = len(self.workers)
        log_file = self.folder / f"worker-{number}.log"
        environment = self.environment() | {"CLIPFLEET_READY_FILE": str(self._ready_file(number))}
        if program[0].startswith(("tests.", "ops.")):
            paths = [str(ROOT), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *program],
                env=environment | dict(settings or {}),
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        worker = WorkerProcess(process, log_file)
        self.workers.append(worker)
        return worker

    def _ready_file(self, number: int) -> Path:
        return self.folder / f"worker-{number}.ready"

    def run(self, *arguments: str | Path, seconds: float = 240.0) -> subprocess.CompletedProcess[str]:
        """Run `clipfleet ARGUMENTS` to its end."""
        return subprocess.run(
            [_BIN / "clipfleet", *map(str, arguments)],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def run_json(self, *arguments: str | Path, expect: int = 0, seconds: float = 240.0) -> dict[str, Any]:
        """Run `clipfleet ARGUMENTS --json`; exactly one object must be on stdout."""
        result = self.run(*arguments, "--json", seconds=seconds)
        assert result.returncode == expect, (result.returncode, result.stdout, result.stderr, self.logs())
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def start(self, *arguments: str | Path, stdin: int | None = None) -> subprocess.Popen[str]:
        """Start `clipfleet ARGUMENTS` without waiting; `stdin` is for `Popen`."""
        program = subprocess.Popen(
            [_BIN / "clipfleet", *map(str, arguments)],
            env=self.environment(),
            cwd=self.folder,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._programs.append(program)
        return program

    def logs(self) -> str:
        """The ends of all workers' logs."""
        return "\n".join(f"--- {worker.log_file}\n{worker.log()[-3000:]}" for worker in self.workers)


def job_events(cluster: Cluster, job_id: str) -> Sequence[dict[str, str]]:
    """Completion events of a job."""
    with connect(cluster.server.url) as client:
        entries: Any = client.xrange(keys.EVENTS)
    return [fields for _, fields in entries if fields["job_id"] == job_id]


def ends(cluster: Cluster, job_id: str) -> list[tuple[str, str]]:
    """Generation and state of each completion event of a job."""
    return [(event["generation"], event["state"]) for event in job_events(cluster, job_id)]
