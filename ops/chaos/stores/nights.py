"""One command at a time, with blows at random moments until it has done what it was told."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from clipfleet.redis.connection import connect
from ops.chaos.fleet import Fleet
from ops.chaos.history import History
from ops.chaos.servers import Servers

_PAUSE_SECONDS = 0.02
_REDIS_IS_AWAY_SECONDS = 0.5
_NIGHT_SECONDS = 420.0  # a lock that a dead program held ends by itself after a minute
_LOCKS = "*lock*store:*"


class Victim(StrEnum):
    """Who is killed."""

    WORKER = "worker"
    PRODUCER = "producer"
    COMMITTER = "committer"  # whoever may hold the lock of the store, while it is held
    REDIS = "redis"


@dataclass(frozen=True, slots=True)
class Blow:
    """One kill."""

    victim: Victim
    after_seconds: float  # since the command began; of a committer: since the lock was seen


@dataclass
class Night:
    """What became of a command."""

    kills: list[Victim] = field(default_factory=list)
    tries: int = 0
    said: str = ""  # on stdout, by the try that succeeded
    problem: str = ""


class Program:
    """A module of Python with its arguments, begun again whenever it was killed or was told no."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._arguments = [sys.executable, "-P", "-m", *command]
        self._environment = dict(environment)
        self._log = log
        self.tries = 0
        self.traceback = ""
        self._running = self._begin()

    def ended(self) -> str | None:
        """What it said on stdout once it has ended well; None: it is still at it."""
        code = self._running.poll()
        if code is None:
            return None
        out, errors = self._running.communicate()
        with self._log.open("a") as log:
            log.write(f"code {code}\n{out}{errors}\n")
        if "Traceback (most recent call last)" in errors:
            self.traceback = errors
        if code == 0:
            return out
        self._running = self._begin()
        return None

    def kill(self) -> None:
        """SIGKILL."""
        self._running.kill()

    def stop(self) -> None:
        """For good."""
        if self._running.poll() is None:
            self._running.kill()
            self._running.communicate()

    def _begin(self) -> subprocess.Popen[str]:
        self.tries += 1
        return subprocess.Popen(
            self._arguments, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


class Nights:
    """Runs commands against stores. One thread only."""

    def __init__(self, servers: Servers, fleet: Fleet, history: History, log: Path) -> None:
        self._servers = servers
        self._fleet = fleet
        self._history = history
        self._log = log
        self._redis_is_due_at: float | None = None

    def run(self, arguments: Sequence[str], blows: Iterable[Blow], chance: random.Random) -> Night:
        """Run a command until it ends well, and strike meanwhile."""
        left = sorted(blows, key=lambda blow: blow.after_seconds)
        night = Night()
        began = time.monotonic()
        program = self._program(arguments)
        try:
            while (said := program.ended()) is None and not program.traceback:
                self._tend()
                for blow in [one for one in left if self._is_due(one, began)]:
                    if self._strike(blow.victim, program, chance):
                        left.remove(blow)
                        night.kills.append(blow.victim)
                if time.monotonic() - began > _NIGHT_SECONDS:
                    night.problem = f"is not over after {_NIGHT_SECONDS:g} s"
                    break
                time.sleep(_PAUSE_SECONDS)
        finally:
            program.stop()
        night.said, night.tries = said or "", program.tries
        night.problem = night.problem or program.traceback
        self._note(arguments, night)
        return night

    def race(self, commands: Sequence[Sequence[str]]) -> list[Night]:
        """Run commands side by side; each must end well at its first try."""
        began = time.monotonic()
        programs = [self._program(arguments) for arguments in commands]
        said: dict[int, str] = {}
        try:
            while len(said) < len(programs) and time.monotonic() - began < _NIGHT_SECONDS:
                self._tend()
                for number, program in enumerate(programs):
                    if number not in said and (out := program.ended()) is not None:
                        said[number] = out
                time.sleep(_PAUSE_SECONDS)
        finally:
            for program in programs:
                program.stop()
        return [
            self._at_once(commands[number], program, said.get(number))
            for number, program in enumerate(programs)
        ]

    def beside(
        self, commands: Iterable[Sequence[str]], others: Sequence[Iterable[Sequence[str]]]
    ) -> list[Night]:
        """Run commands one after the other, and others beside them; each must end well at its first try.

        Args:
            commands: to their end.
            others: likewise, but none is begun any more once that is over.
        """
        began = time.monotonic()
        left = {number: iter(some) for number, some in enumerate([commands, *others])}
        running: dict[int, tuple[Sequence[str], Program]] = {}
        nights: list[Night] = []
        try:
            while (running or 0 in left) and time.monotonic() - began < _NIGHT_SECONDS:
                self._tend()
                for number in [one for one in left if one not in running]:
                    command = next(left[number], None) if 0 in left else None
                    if command is None:
                        del left[number]
                    else:
                        running[number] = command, self._program(command)
                for number, (command, program) in [*running.items()]:
                    if (said := program.ended()) is not None or program.tries > 1:
                        nights.append(self._at_once(command, program, said))
                        del running[number]
                time.sleep(_PAUSE_SECONDS)
        finally:
            for _, program in running.values():
                program.stop()
        return nights + [self._at_once(command, program, None) for command, program in running.values()]

    def _at_once(self, command: Sequence[str], program: Program, said: str | None) -> Night:
        """What became of a command that must succeed at its first try; `said` is None if it has not."""
        program.stop()
        problem = "" if said is not None else f"is not over after {_NIGHT_SECONDS:g} s"
        if program.tries > 1:
            problem = f"{command[:3]} did not succeed by itself: {program.tries} tries"
        night = Night([], program.tries, said or "", program.traceback or problem)
        self._note(command, night)
        return night

    def _program(self, command: Sequence[str]) -> Program:
        return Program(command, self._servers.environment(), self._log)

    def _tend(self) -> None:
        self._fleet.tend()
        if self._redis_is_due_at is not None and time.monotonic() >= self._redis_is_due_at:
            self._servers.single_redis.start_again()
            self._redis_is_due_at = None

    def _is_due(self, blow: Blow, began: float) -> bool:
        if time.monotonic() - began < blow.after_seconds:
            return False
        return blow.victim is not Victim.COMMITTER or self._is_locked()

    def _is_locked(self) -> bool:
        if self._redis_is_due_at is not None:
            return False
        with connect(self._servers.redis.direct_url) as client:
            return bool(client.keys(_LOCKS))

    def _strike(self, victim: Victim, program: Program, chance: random.Random) -> bool:
        """False: there is nobody to kill at the moment."""
        slots = [slot.number for slot in self._fleet.slots if self._fleet.ready_worker(slot.number)]
        if victim is Victim.PRODUCER:
            program.kill()
        elif victim is Victim.REDIS:
            if self._redis_is_due_at is not None:
                return False
            self._servers.single_redis.kill()
            self._redis_is_due_at = time.monotonic() + _REDIS_IS_AWAY_SECONDS
        elif victim is Victim.WORKER:
            if not slots:
                return False
            self._fleet.end(chance.choice(slots), signal.SIGKILL)
        else:
            time.sleep(chance.random() * 0.1)  # commits of a few rows take no longer
            program.kill()
            for slot in slots:
                self._fleet.end(slot, signal.SIGKILL)
        return True

    def _note(self, arguments: Sequence[str], night: Night) -> None:
        self._history.note(
            "night", command=" ".join(arguments), kills=[str(one) for one in night.kills], tries=night.tries,
            problem=night.problem, said=night.said.strip()[-400:],
        )  # fmt: skip
