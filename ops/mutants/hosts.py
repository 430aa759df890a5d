"""Copies of the product, each with a process that runs tests on it. See `host.py`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_PRODUCT = ("producer", "worker")
_HOST = Path(__file__).with_name("host.py")


class HostError(Exception):
    """The tests cannot be run."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A test that was run to its end."""

    test: str
    seconds: float
    blocks: frozenset[str]  # that ran, where that was looked for


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of some tests."""

    ended: Sequence[Ended]
    failed: Mapping[str, str]  # test -> what was wrong


class Host:
    """Runs tests on a copy of the product of a tree, with other texts of scripts."""

    def __init__(self, root: Path, tests: Sequence[str]) -> None:
        self.root = root
        self._directory = tempfile.TemporaryDirectory(prefix="clipfleet-lua-mutants-")
        folder = Path(self._directory.name)
        for name in _PRODUCT:
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        self._log = folder / "host.log"
        self._scripts = scripts_folder(folder)
        paths = [*(str(folder / name) for name in _PRODUCT), os.environ.get("PYTHONPATH", "")]
        # -P: the folder of the script is no place to import from
        self._process = subprocess.Popen(
            [_python_of(root), "-P", str(_HOST), str(folder), *tests],
            cwd=root,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TMPDIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.tests: Sequence[str] = self._read()["tests"]
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        if self._process.stdin and self._process.stdout:
            self._process.stdin.close()
            self._process.stdout.close()
        self._directory.cleanup()

    def survey(self, texts: Mapping[str, str], limit_seconds: float) -> Outcome:
        """All tests, on scripts with probes; what fails does not end it."""
        return self._run_with(texts, self.tests, dict.fromkeys(self.tests, limit_seconds), is_survey=True)

    def run(self, script: str, text: str, limits: Mapping[str, float]) -> Outcome:
        """Tests in the given order with the text of a script, up to the first that fails.

        Args:
            script: its name.
            text: all of it.
            limits: test -> seconds after which it has failed.
        """
        return self._run_with({script: text}, list(limits), limits, is_survey=False)

    def _run_with(
        self, texts: Mapping[str, str], tests: Sequence[str], limits: Mapping[str, float], *, is_survey: bool
    ) -> Outcome:
        before = {name: self._script(name).read_text() for name in texts}
        for name, text in texts.items():
            self._script(name).write_text(text)
        try:
            answer = self._request({"tests": tests, "limits": limits, "is_survey": is_survey})
        finally:
            for name, text in before.items():
                self._script(name).write_text(text)
        if "error" in answer:
            raise HostError(f"tests cannot be run: {answer['error']}")
        ended = [Ended(one["test"], one["seconds"], frozenset(one["blocks"])) for one in answer["ended"]]
        return Outcome(ended, answer["failed"])

    def _script(self, name: str) -> Path:
        return self._scripts / f"{name}.lua"

    def _request(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        assert self._process.stdin is not None  # noqa: S101 - a pipe, see above
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - likewise
        if line := self._process.stdout.readline():
            answer: Mapping[str, Any] = json.loads(line)
            return answer
        log = self._log.read_text()[-2000:] if self._log.exists() else ""
        raise HostError(f"the process that runs the tests has ended:\n{log}")


def scripts_folder(root: Path) -> Path:
    """Where a tree has its Lua scripts."""
    folders = [folder for folder in (root / "producer").rglob("lua") if folder.is_dir()]
    if len(folders) != 1:
        raise HostError(f"{root}: found {len(folders)} folders named lua in producer; one is needed")
    return folders[0]


def _python_of(root: Path) -> str:
    """A tree that is not ours has an environment of its own."""
    own = root / ".venv" / "bin" / "python"
    return str(own) if root != ROOT and own.exists() else sys.executable
