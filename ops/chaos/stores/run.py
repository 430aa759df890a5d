"""`make chaos-stores`: break the nights of stores, let them race, then compare with fresh stores.

Exit code 0: every store holds what its source does, each image once. 1: it does not; the history tells more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from clipfleet_worker.machine.embedded.s3 import BUCKET
from ops.chaos.fleet import Fleet
from ops.chaos.history import History
from ops.chaos.servers import Servers
from ops.chaos.stores import upkeep
from ops.chaos.stores.check import Stored, differences, exported_to, impossible, problems, stored_in
from ops.chaos.stores.library import Library
from ops.chaos.stores.nights import Blow, Night, Nights, Victim
from tests.support.second_model import write_second_model

_IMAGES = 200
_NEW, _CHANGED, _GONE = 8, 16, 6  # of a night
_CHUNK_SIZE = "8"
_NIGHTS_BESIDE = 6  # a migration
_READERS = 3  # of a night
_READ_SECONDS = (2.0, 10.0)  # that one stands still; a vacuum spares more, see `upkeep`
_WORKERS = 3
_BACKFILL, _COMPACT, _MIGRATE = "backfill", "compact", "migrate"
_CYCLE = (_BACKFILL, _COMPACT, _BACKFILL, _MIGRATE)
_LATEST_SECONDS = {_BACKFILL: 5.0, _COMPACT: 2.5, _MIGRATE: 8.0}  # of a blow


class Trial:
    """Two stores of one library, in a folder and in S3."""

    def __init__(
        self, folder: Path, nights: Nights, library: Library, models: Sequence[str], seed: int
    ) -> None:
        self._chance = random.Random(seed)
        self._nights = nights
        self._library = library
        self._models = models
        self._stores = [str(folder / "store"), f"s3://{BUCKET}/store"]
        self._model_of = dict.fromkeys(self._stores, models[0])
        self._fresh = str(folder / "fresh")
        self._answers, self._read = folder / "answers", 0
        self.kills: Counter[str] = Counter()
        self.races: Counter[str] = Counter()
        self.removed: Counter[str] = Counter()  # by vacuums
        self.found: list[str] = []

    def fill(self) -> None:
        """The first night of each store, undisturbed."""
        for store in self._stores:
            self._judge(store, self._nights.run(self._backfill(store), (), self._chance))

    def break_nights(self, kills: int) -> None:
        """Commands one after the other, until as many programs were killed."""
        number = 0
        while self.kills.total() < kills and not self.found:
            kind, store = _CYCLE[number // 2 % len(_CYCLE)], self._stores[number % 2]
            number += 1
            self._break(kind, store, number)

    def let_race(self, races: int) -> None:
        """Two backfills of the same changes at once, again and again, in turn into each store."""
        for number in range(races):
            if self.found:
                return
            store = self._stores[number % 2]
            self._library.change(new=2, changed=4, gone=1)
            for night in self._nights.race([self._backfill(store)] * 2):
                self._judge(store, night)
            self.races["two backfills"] += 1

    def let_switch(self, times: int) -> None:
        """Migrations beside nights of a changing source, readers and vacuums."""
        for number in range(times):
            if self.found:
                return
            store = self._stores[number % 2]
            before = self._look(store).fingerprint
            self._model_of[store] = self._other_model(store)
            others = [self._nights_to_come(store), self._reads(store), self._upkeep(store)]
            self._beside(store, 4, [[*self._backfill(store), "--migrate"]], others)
            if self._look(store).fingerprint == before:
                self.found.append(f"{store}: did not switch to another model")
            self.races["a migration with nights, readers and vacuums"] += 1

    def let_vacuum(self, times: int) -> None:
        """Nights beside readers and vacuums, of a store with versions that are old enough to go.

        All images change: the next version has none of the files of the one before. In half of the races the
        first upkeep comes after the night: its compaction may make a version that has the same files.
        """
        if times:
            time.sleep(upkeep.SECONDS)
        for number in range(times):
            if self.found:
                return
            store = self._stores[number % 2]
            others = [self._reads(store) for _ in range(_READERS)]
            others += [self._upkeep(store)] if number % 4 > 1 else []
            changed = len(self._library.hashes) - 1
            self._beside(store, changed, [self._backfill(store), self._vacuum(store)], others)
            self.races["a night with readers and vacuums"] += 1
        if times and not self.removed["versions"]:
            self.found.append("no vacuum has removed a version")

    def _beside(
        self, store: str, changed: int, commands: Iterable[Sequence[str]],
        others: Sequence[Iterable[Sequence[str]]],
    ) -> None:  # fmt: skip
        """Change some images, run commands, and others beside them; see `Nights.beside`."""
        self._library.change(new=2, changed=changed, gone=1)
        always = self._look(store).rows.keys() & self._library.hashes.keys()
        for night in self._nights.beside(commands, others):
            if night.problem:
                self.found.append(f"{store}: {night.problem}")
            elif "models" in (said := json.loads(night.said)):
                self.removed.update(said)
        self.found += [f"{store}: {one}" for one in problems(self._look(store), self._library.hashes)]
        for answer in sorted(self._answers.iterdir()):
            found = impossible(exported_to(answer), always, self._library.ever)
            self.found += [f"{store}, read as {answer.name}: {one}" for one in found]
            if not self.found:
                shutil.rmtree(answer)

    def _nights_to_come(self, store: str) -> Iterator[Sequence[str]]:
        """Of whatever model the store has; so few that a migration comes to its end.

        Each begins after the change that it is for: of a later one, a migration that is over knows nothing.
        """
        for _ in range(_NIGHTS_BESIDE):
            self._library.change(new=1, changed=2, gone=0)
            yield ["clipfleet", "backfill", str(self._library.folder), "--store", store, "--json"]

    def _reads(self, store: str) -> Iterator[Sequence[str]]:
        self._answers.mkdir(exist_ok=True)
        while True:
            self._read += 1
            folder = str(self._answers / f"{self._read:05}")
            pause = f"{self._chance.uniform(*_READ_SECONDS):.1f}"
            yield ["ops.chaos.stores.slow_reader", store, folder, pause]

    def _upkeep(self, store: str) -> Iterator[Sequence[str]]:
        while True:
            yield self._vacuum(store)

    @staticmethod
    def _vacuum(store: str) -> list[str]:
        return ["ops.chaos.stores.upkeep", store]

    def compare(self) -> None:
        """Each store with a fresh one of its model."""
        for number, store in enumerate(self._stores):
            self._nights.run(self._backfill(store), (), self._chance)
            fresh = f"{self._fresh}-{number}"
            self._model_of[fresh] = self._model_of[store]
            self._nights.run(self._backfill(fresh), (), self._chance)
            self.found += [f"{store}: {one}" for one in differences(self._look(store), self._look(fresh))]

    def _break(self, kind: str, store: str, number: int) -> None:
        self._library.change(new=_NEW, changed=_CHANGED, gone=_GONE)
        if kind == _COMPACT:
            self._judge(store, self._nights.run(self._backfill(store), (), self._chance))
            self._judge(store, self._run(kind, ["clipfleet", "store", "compact", store]))
        elif kind == _MIGRATE:
            self._model_of[store] = self._other_model(store)
            self._judge(store, self._run(kind, [*self._backfill(store), "--migrate"]))
        else:
            # The same job whichever try comes through, every other time.
            named = ["--job-id", f"night-{number}"] if number % 4 < 2 else []
            self._judge(store, self._run(kind, [*self._backfill(store), *named]))

    def _run(self, kind: str, command: Sequence[str]) -> Night:
        night = self._nights.run(command, self._blows(kind), self._chance)
        self.kills.update(f"{kind}: {victim}" for victim in night.kills)
        return night

    def _blows(self, kind: str) -> list[Blow]:
        victims = [Victim.PRODUCER, Victim.REDIS] if kind == _COMPACT else [*Victim]
        return [
            Blow(self._chance.choice(victims), self._chance.uniform(0.3, _LATEST_SECONDS[kind]))
            for _ in range(self._chance.randint(1, 3))
        ]

    def _backfill(self, store: str) -> list[str]:
        return [
            "clipfleet", "backfill", str(self._library.folder), "--store", store,
            "--model", self._model_of[store], "--chunk-size", _CHUNK_SIZE, "--json",
        ]  # fmt: skip

    def _other_model(self, store: str) -> str:
        return next(one for one in self._models if one != self._model_of[store])

    def _judge(self, store: str, night: Night) -> None:
        if night.problem:
            self.found.append(f"{store}: {night.problem}")
        self.found += [f"{store}: {one}" for one in problems(self._look(store), self._library.hashes)]

    @staticmethod
    def _look(store: str) -> Stored:
        return stored_in(store)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    options = _options(arguments)
    folder = Path(tempfile.mkdtemp(prefix="clipfleet-chaos-stores-", dir=options.folder)).absolute()
    sizes = ", ".join(f"{getattr(options, one)} {one}" for one in ("kills", "races", "vacuums", "switches"))
    print(f"chaos of stores: seed {options.seed}, {sizes}; see {folder}")
    began = time.monotonic()
    trial = _try(options, folder)
    for what, times in sorted(trial.kills.items()):
        print(f"  {times:3} killed in {what}")
    for what, times in trial.races.items():
        print(f"  {times:3} races: {what}")
    print(f"  {dict(trial.removed)} removed by vacuums; {time.monotonic() - began:.0f} s")
    if not trial.found:
        print("As promised: the stores equal fresh ones over the same source.")
        shutil.rmtree(folder)
        return 0
    for one in trial.found[:20]:
        print(f"NOT as promised: {one}")
    return 1


def _try(options: argparse.Namespace, folder: Path) -> Trial:
    history = History(folder / "history.jsonl", time.monotonic())
    with Servers(folder, options.seed, with_sentinels=False) as servers:
        models = ["demo", write_second_model(folder / "second")]
        environment = servers.environment() | {"CLIPFLEET_MODELS": ",".join(models)}
        os.environ.update({name: value for name, value in environment.items() if name.startswith("AWS_")})
        library = Library(folder / "library", _IMAGES, random.Random(options.seed + 1))
        fleet = Fleet(folder / "fleet", _WORKERS, environment, history, body="clipfleet")
        nights = Nights(servers, fleet, history, folder / "commands.log")
        trial = Trial(folder, nights, library, models, options.seed)
        try:
            fleet.start()
            for step in _steps(trial, options):
                history.note("step", name=step)
        finally:
            fleet.stop()
    history.close()
    return trial


def _steps(trial: Trial, options: argparse.Namespace) -> Iterator[str]:
    yield "fill"
    trial.fill()
    yield "break"
    trial.break_nights(options.kills)
    yield "race"
    trial.let_race(options.races)
    yield "vacuum"
    trial.let_vacuum(options.vacuums)
    yield "switch"
    trial.let_switch(options.switches)
    yield "compare"
    if not trial.found:
        trial.compare()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Break nights of stores, then compare with fresh ones.")
    seed = os.environ.get("CHAOS_SEED")
    parser.add_argument("--seed", type=int, default=int(seed) if seed else random.randrange(1_000_000))
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--races", type=int, default=60)
    parser.add_argument("--vacuums", type=int, default=20)
    parser.add_argument("--switches", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where the run makes its own folder; default: TMPDIR")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
