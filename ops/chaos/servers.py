"""The servers of a run, each behind what can break: Valkey behind a proxy, SeaweedFS behind a front.

Or, instead of the one Valkey, a pair of them that Sentinels watch.
"""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from clipfleet_worker.machine.embedded.s3 import EmbeddedS3
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from ops.chaos.material import Site
from ops.chaos.proxy import Proxy
from ops.chaos.sentinel import SentinelPair
from tests.support.s3_front import S3Front

ROOT = Path(__file__).resolve().parents[2]
LEASE_SECONDS = 3.0
RECONCILE_SECONDS = 0.5
DRAIN_SECONDS = 5.0
WRITE_LIMIT_SECONDS = 12.0  # longer than a worker sleeps within a write
RUN_MARK = "CHAOS_RUN"  # environment variable that all processes of a run have


def fake_time_library() -> Path | None:
    """What lets a process see another time, of Debian's package `faketime`; None if it is not there."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


class DurableValkey(EmbeddedValkey):
    """One that keeps every write it acknowledged, also when it is killed in the next moment.

    Its clock may be put forward and back, if `fake_time_library` is there.
    """

    def _config(self, identity: Any) -> str:
        return super()._config(identity) + "appendfsync always\n"

    def put_clock(self, offset_seconds: int) -> None:
        """How far its clock is ahead from now on; it takes a second until it is noticed."""
        self._clock.write_text(f"{offset_seconds:+d}\n")

    @property
    def _clock(self) -> Path:
        return self._directory / "clock"

    def _binary(self) -> Path:
        binary, library = super()._binary(), fake_time_library()
        if library is None:
            return binary
        if not self._clock.exists():
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.put_clock(0)
        # Waiting for I/O goes by the monotonic clock, which jumps nowhere.
        variables = {
            "LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": self._clock, "FAKETIME_CACHE_DURATION": 1,
            "FAKETIME_DONT_FAKE_MONOTONIC": 1,
        }  # fmt: skip
        words = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in variables.items())
        script = self._directory / "valkey-server"
        script.write_text(f'#!/bin/sh\nexec env {words} {shlex.quote(str(binary))} "$@"\n')
        script.chmod(0o700)
        return script


class SingleRedis:
    """One Valkey, which producers and workers reach through a proxy."""

    def __init__(self, folder: Path) -> None:
        self._valkey = DurableValkey(folder)
        self._clock_offset_seconds = 0
        self.proxy: Proxy

    def __enter__(self) -> Self:
        self._valkey.start()
        self.proxy = Proxy(self._port)
        self.proxy.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.stop()
        self._valkey.stop()

    @property
    def _port(self) -> int:
        return urlsplit(self._valkey.url).port or 0

    @property
    def direct_url(self) -> str:
        """As only the harness sees it: nothing breaks."""
        return self._valkey.url

    @property
    def url(self) -> str:
        """As producers and workers see it."""
        return self._valkey.url.replace(f":{self._port}/", f":{self.proxy.port}/")

    def terminate(self) -> None:
        """An orderly end."""
        self._valkey.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self._valkey.child.kill()

    def move_clock(self, seconds: int) -> None:
        """Its clock jumps, forward or back."""
        self._clock_offset_seconds += seconds
        self._valkey.put_clock(self._clock_offset_seconds)

    def start_again(self) -> None:
        """Its port may be another one."""
        self._valkey.start()
        self.proxy.retarget(self._port)

    def heal(self) -> None:
        """Let everything pass."""
        self.proxy.thaw()


class SentinelRedis(SentinelPair):
    """A pair that fails over."""

    @property
    def direct_url(self) -> str:
        """The primary."""
        return self.primary_url

    def heal(self) -> None:
        """It is whole after every failover."""


class Servers:
    """Started on entry. Valkey and the store are started from the thread that calls, which must live on."""

    def __init__(self, folder: Path, seed: int, *, with_sentinels: bool) -> None:
        self._folder = folder
        self._seed = seed
        self._stack = ExitStack()
        self.redis = SentinelRedis(folder / "redis") if with_sentinels else SingleRedis(folder / "redis")
        self.store = EmbeddedS3(folder / "s3")
        self.site = Site()
        self.front: S3Front

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.redis)
            stack.enter_context(self.store)
            stack.enter_context(self.site)
            self.front = stack.enter_context(S3Front(self.store.endpoint, seed=self._seed))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def single_redis(self) -> SingleRedis:
        """The one Valkey, where there is but one."""
        if not isinstance(self.redis, SingleRedis):
            raise TypeError("this fault is for a single Redis")
        return self.redis

    @property
    def sentinel_redis(self) -> SentinelRedis:
        """The pair, where there is one."""
        if not isinstance(self.redis, SentinelRedis):
            raise TypeError("this fault is for a Redis with Sentinels")
        return self.redis

    def heal(self) -> None:
        """Everything that is broken works again. A store or Redis that is down is another matter."""
        self.redis.heal()
        self.front.heal()

    def environment(self) -> dict[str, str]:
        """The whole environment of producers and workers of this run."""
        ours = ("CLIPFLEET_", "AWS_", "CHAOS_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        scratch = self._folder / "tmp"
        scratch.mkdir(exist_ok=True)
        paths = [str(ROOT), *(path for path in clean.get("PYTHONPATH", "").split(os.pathsep) if path)]
        return {
            **clean,
            **self.front.environment(self.store.environment()),
            "CLIPFLEET_REDIS_URL": self.redis.url,
            "CLIPFLEET_FILE_ROOTS": str(self._folder),
            "CLIPFLEET_OUTPUT_ROOTS": str(self._folder),
            "CLIPFLEET_MODELS": "demo",
            "CLIPFLEET_ALLOW_PRIVATE": "127.0.0.0/8",
            "CLIPFLEET_LEASE_SECONDS": str(LEASE_SECONDS),
            "CLIPFLEET_RECONCILE_SECONDS": str(RECONCILE_SECONDS),
            "CLIPFLEET_DRAIN_SECONDS": str(DRAIN_SECONDS),
            "CLIPFLEET_WRITE_LIMIT_SECONDS": str(WRITE_LIMIT_SECONDS),
            "CLIPFLEET_DECODE_THREADS": "2",
            "CLIPFLEET_HOST_CONNECTIONS": "128",
            RUN_MARK: str(self._folder),
            "PYTHONPATH": os.pathsep.join(paths),
            "TMPDIR": str(scratch),
            # Several workers share few cores: each with a thread per core, they wait for one another's.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }


def processes_of(mark: str) -> list[str]:
    """Processes whose environment has this mark of a run, as `PID COMMAND`; not this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if f"{RUN_MARK}={mark}".encode() not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has just ended, or belongs to another user
            continue
        if command:  # else it is a zombie that its parent will collect
            found.append(f"{entry.name} {command}")
    return found
