"""`make chaos-stores`: break the nights of stores, let backfills race, then compare with fresh stores.

Exit code 0: every store holds what its source does, each image once. 1: it does not; the history tells more.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipfleet_worker.machine.embedded.s3 import BUCKET
from ops.chaos.fleet import Fleet
from ops.chaos.history import History
from ops.chaos.servers import Servers
from ops.chaos.stores.check import Stored, differences, problems, stored_in
from ops.chaos.stores.library import Library, write_second_model
from ops.chaos.stores.nights import Blow, Night, Nights, Victim

_IMAGES = 200
_NEW, _CHANGED, _GONE = 8, 16, 6  # of a night
_CHUNK_SIZE = "8"
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
        self.kills: Counter[str] = Counter()
        self.races = 0
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
            self.races += 1

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
            self._judge(store, self._run(kind, ["store", "compact", store]))
        elif kind == _MIGRATE:
            self._model_of[store] = next(one for one in self._models if one != self._model_of[store])
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
            "backfill", str(self._library.folder), "--store", store, "--model", self._model_of[store],
            "--chunk-size", _CHUNK_SIZE, "--json",
        ]  # fmt: skip

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
    print(f"chaos of stores: seed {options.seed}, {options.kills} kills, {options.races} races; see {folder}")
    began = time.monotonic()
    trial = _try(options, folder)
    for what, times in sorted(trial.kills.items()):
        print(f"  {times:3} killed in {what}")
    print(f"  {trial.races:3} races of two backfills; {time.monotonic() - began:.0f} s")
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
    yield "compare"
    if not trial.found:
        trial.compare()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Break nights of stores, then compare with fresh ones.")
    seed = os.environ.get("CHAOS_SEED")
    parser.add_argument("--seed", type=int, default=int(seed) if seed else random.randrange(1_000_000))
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--races", type=int, default=60)
    parser.add_argument("--folder", type=Path, help="where the run makes its own folder; default: TMPDIR")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
