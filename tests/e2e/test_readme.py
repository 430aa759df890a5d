"""Every command that the documents show is run, in order, as a reader would: one shell from top to bottom.

A block that cannot run here says why in the line above it: `<!-- not run: docker|gpu|network -->`, one of the
words or several. `make demo` and `make test` are left to CI, which is checked to call them. What a block
leaves in its shell (variables, the working directory) is there for the next one.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Self

import pyarrow.dataset as ds
import pytest

from clipfleet_worker.cli.demo import samples
from clipfleet_worker.machine.embedded.server import free_port
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from tests.conftest import service_is_missing
from tests.support.documents import ROOT, Block, blocks, documents
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.one_broker, pytest.mark.long]

NOT_RUN = re.compile(r"<!-- not run: (docker|gpu|network)(\|(docker|gpu|network))* -->")
SHELL, PYTHON = ("sh", "bash", "shell", "console"), ("python", "py")
OTHERS = {"javascript": ("node", "demo.mjs"), "go": ("go", "run", "demo.go")}
RUN = (*SHELL, *PYTHON, *OTHERS)
TOOLS = ("curl", "jq")  # of commands, which a machine may lack, as it may lack the programs of `OTHERS`
BLOCK_SECONDS = 240
# What stands for a reader's own machines, and what each service says once it can be used.
REDIS_URL, SHARE = "redis://:password@redis.internal:6379/0", "/mnt/share"
UP_GATEWAY = "up --gateway"
READY = {"run": "is ready", "up": "clipfleet is up"}
# What is read in one go, in one clone; each begins after `make demo`.
CHAINS = (
    ("README.md",),
    ("docs/label-a-bucket.md",),
    ("docs/certify.md",),
    ("docs/report.md",),
    ("docs/http-api.md",),
    ("docs/not-python.md",),
    ("docs/webhooks.md",),
    ("docs/moderation.md", "docs/decisions.md"),
    ("ops/demo_model/README.md",),
    (
        "docs/first-minute.md", "docs/labelling.md", "docs/label-sets.md", "docs/embedding.md",
        "docs/relabel.md", "docs/search.md", "docs/evaluate.md", "docs/heads.md", "docs/backfill.md",
        "docs/store.md", "docs/python.md", "docs/s3.md", "docs/models.md", "docs/results.md",
        "docs/replay.md", "docs/deploy.md",
    ),
)  # fmt: skip
LEFT_TO_CI = {"make demo": r"^in_clone demo$", "make test": r'^make PYTHON="\$python" .*\btest$'}


class Reader:
    """Copies blocks into a shell, one after the other."""

    def __init__(self, folder: Path, replacements: dict[str, str]) -> None:
        self.folder = folder
        self._here = folder
        self._replacements = replacements
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CLIPFLEET_")}
        self._environment = clean | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"}
        self._services: list[tuple[Block, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _, service in self._services:
            service.kill()
            service.wait()

    def read(self, block: Block) -> str:
        """Run a block to its end, or start the service that it starts; returns what it printed."""
        text = block.text
        for shown, real in self._replacements.items():
            text = text.replace(shown, real)
        self._require_tools(block)
        if block.language in PYTHON:
            return self._run([sys.executable, "-"], block, text)
        if block.language in OTHERS:
            command = OTHERS[block.language]
            (self._here / command[-1]).write_text(text)
            return self._run(command, block, "")
        last = r"^clipfleet-worker (run|up)\b(?!.* (--|--stop)( |$))[^\n\\]*\Z"
        service = re.search(last, text.rstrip(), re.MULTILINE)
        if service:
            return self._start(block, text[: service.start()] + "exec " + service[0], READY[service[1]])
        return self._run_shell(block, text)

    def _require_tools(self, block: Block) -> None:
        others = OTHERS.get(block.language, ())[:1]
        for tool in (*others, *(tool for tool in TOOLS if re.search(rf"\b{tool}\b", block.text))):
            if shutil.which(tool) is None:
                service_is_missing(f"{block.where} needs {tool}, which is not installed")

    def _run_shell(self, block: Block, text: str) -> str:
        # From a file: a command that reads its input must not eat the commands after it.
        script, kept = self.folder.parent / "block.sh", self.folder.parent / "block.environment"
        script.write_text(f"{text}\nenv -0 > {shlex.quote(str(kept))}\n")
        kept.unlink(missing_ok=True)
        output = self._run(["bash", "-euo", "pipefail", str(script)], block, "")
        assert kept.exists(), f"{block.where} ends the shell before its last line"
        pairs = (entry.partition("=") for entry in kept.read_text().split("\0") if entry)
        self._environment = {name: value for name, _, value in pairs}
        self._here = Path(self._environment["PWD"])
        return output

    def _run(self, command: Sequence[str], block: Block, text: str) -> str:
        result = subprocess.run(
            command, input=text, cwd=self._here, env=self._environment, capture_output=True, text=True,
            timeout=BLOCK_SECONDS, check=False,
        )  # fmt: skip
        assert result.returncode == 0, (block.where, text, result.stdout, result.stderr)
        return result.stdout

    def _start(self, block: Block, text: str, ready: str) -> str:
        log_file = self.folder.parent / f"service-{len(self._services)}.log"
        with log_file.open("wb") as log:
            service = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", text], cwd=self._here, env=self._environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._services.append((block, service))
        where = block.where
        wait_until(lambda: ready in log_file.read_text() or service.poll() is not None, f"{where} is up", 120)
        assert service.poll() is None, (where, log_file.read_text())
        return ""

    def stop_services(self) -> None:
        """End them as a reader would; they must take it well."""
        while self._services:
            block, service = self._services.pop()
            service.send_signal(signal.SIGTERM)
            assert service.wait(60) == 0, block.where


def lay_out(folder: Path) -> None:
    """What a reader has after `make demo`, and a share with images."""
    for name in ("ops", "worker", "producer"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    share = folder / "share"
    (share / "results").mkdir(parents=True)
    with as_file(files("clipfleet_worker") / "samples") as images:
        for sample in samples():
            target = folder / "clipfleet-demo" / "images" / str(sample.group) / sample.file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(images / sample.file, target)
    shutil.copytree(folder / "clipfleet-demo" / "images" / "2", share / "images")


def to_be_run(document: Path) -> list[Block]:
    found = [block for block in blocks(document) if block.language in RUN]
    return [block for block in found if not block.note and block.text.strip() not in LEFT_TO_CI]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    folder = tmp_path / "clone"
    folder.mkdir()
    lay_out(folder)
    with EmbeddedValkey(tmp_path / "redis") as server:
        replacements = {
            REDIS_URL: server.url,
            SHARE: str(folder / "share"),
            UP_GATEWAY: f"{UP_GATEWAY} --gateway-port {free_port()}",
        }
        with Reader(folder, replacements) as reader:
            yield reader


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_not_run_says_why(document: Path) -> None:
    for block in blocks(document):
        if block.note and block.language in RUN:
            assert NOT_RUN.fullmatch(block.note), f"{block.where}: {block.note}"
    shown = [line for line in document.read_text().splitlines() if line.startswith("<!-- not run")]
    assert len(shown) == len([block for block in blocks(document) if block.note.startswith("<!-- not run")])


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_name_their_language(document: Path) -> None:
    known = {*RUN, "text", "json", "jsonl", "sql", "yaml", "toml", "ini", "crontab"}
    assert {block.language for block in blocks(document)} <= known


def test_what_is_left_to_ci_is_run_by_ci() -> None:
    shown = {block.text.strip() for document in documents() for block in blocks(document)}
    script = (ROOT / ".ci" / "run").read_text()
    for command, line in LEFT_TO_CI.items():
        assert command in shown
        assert re.search(line, script, re.MULTILINE), f"{command} is not in .ci/run"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain[0])
def test_the_commands_of_documents_run(reader: Reader, chain: tuple[str, ...]) -> None:
    for name in chain:
        for block in to_be_run(ROOT / name):
            reader.read(block)
    reader.stop_services()
    check_results(reader.folder / "results")
    check_results(reader.folder / "share" / "results")


def test_every_document_with_commands_is_run() -> None:
    shown = [str(path.relative_to(ROOT)) for path in documents() if to_be_run(path)]
    assert sorted(shown) == sorted(name for chain in CHAINS for name in chain if to_be_run(ROOT / name))


def check_results(results: Path) -> None:
    """Every job of the page has finished, and the layout that the page shows is that of a job."""
    shown = [block.text for block in blocks(ROOT / "docs" / "results.md")]
    layout = next(text for text in shown if text.startswith("results/first/"))
    names = re.findall(r"^  (\S+)", layout, re.MULTILINE)
    outputs = sorted(path.parent for path in results.glob("*/_clipfleet"))
    for output in outputs:
        found = sorted(path.name for path in output.iterdir() if path.name != "_marks")
        assert found == sorted(name.strip("/") for name in names)
    if (results / "list").exists():
        table = ds.dataset(sorted((results / "list").glob("data/part-*.parquet"))).to_table()
        assert table["label"].to_pylist() == ["pie", "stadium"]
        assert table["shelf"].to_pylist() == ["7", "9"]


BROKEN = {
    "a command in the middle": ("sh", "true\nclipfleet classify nowhere --labels a,b\ntrue\n"),
    "a command before a pipe": ("sh", "clipfleet jobz | cat\n"),
    "a heredoc without an end": ("sh", "cat > list.txt <<'END'\na.png\n"),
    "what is never reached": ("sh", "exit 0\nclipfleet jobs\n"),
    "a service that does not come up": ("sh", "clipfleet-worker run --models nothing\n"),
    "python": ("python", "from clipfleet.client import Klient\n"),
}


@pytest.mark.parametrize(("language", "text"), BROKEN.values(), ids=BROKEN)
def test_a_broken_command_is_found(reader: Reader, language: str, text: str) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:1"):
        reader.read(Block(language, text, "", "page.md:1"))


def test_a_command_that_reads_its_input_eats_no_other_command(reader: Reader) -> None:
    assert reader.read(Block("sh", "cat\necho reached\n", "", "page.md:1")) == "reached\n"


def test_what_a_block_leaves_in_the_shell_is_there_for_the_next(reader: Reader) -> None:
    reader.read(Block("sh", "export SHELF=7\nmkdir -p deep\ncd deep\n", "", "page.md:1"))
    assert reader.read(Block("sh", "echo $SHELF $(basename $PWD)\n", "", "page.md:2")) == "7 deep\n"
