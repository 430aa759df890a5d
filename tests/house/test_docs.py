"""The pages build without a warning, and name commands, options and metrics that exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from clipfleet import commands as producer_cli
from clipfleet.contract.bottleneck import LimitingStep
from clipfleet_gateway import commands as gateway_cli
from clipfleet_worker.cli import commands as worker_cli
from clipfleet_worker.status.metrics.ledger import LEDGER_FAMILIES
from clipfleet_worker.status.metrics.process import WORKER_FAMILIES
from tests.support.documents import ROOT, blocks, documents
from tests.support.metrics_page import gateway_names

PROGRAMS: dict[str, Any] = {
    "clipfleet": typer.main.get_command(producer_cli.app),
    "clipfleet-gateway": typer.main.get_command(gateway_cli.app),
    "clipfleet-worker": typer.main.get_command(worker_cli.app),
}
SUFFIXES = ("_bucket", "_sum", "_count")  # that the format adds
# Where a command ends: a pipe, a redirection, the next command.
ENDS = re.compile(r"(?:\||>|<|&&|;|#).*$")


def commands(document: Path) -> Iterator[str]:
    """Every command line of ours in blocks and between backticks, one by one."""
    shown = [block.text for block in blocks(document) if block.language in ("sh", "bash", "shell")]
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    shown += [
        span.replace("\n", " ") for span in re.findall(r"`(clipfleet(?:-gateway|-worker)? [^`]+)`", text)
    ]
    for part in shown:
        for line in part.replace("\\\n", " ").splitlines():
            for piece in re.split(r" -- ", line):
                if re.match(r"\s*clipfleet(-gateway|-worker)? ", piece):
                    yield ENDS.sub("", piece.replace("\\|", "|")).strip()


def options_of(program: str, words: list[str]) -> tuple[set[str], list[str]]:
    """The options of the command that some words name, and the words after its name."""
    command, options = PROGRAMS[program], {"--help", "--version", "--install-completion", "--show-completion"}
    while words and hasattr(command, "commands"):
        if words[0].startswith("-"):
            break
        assert words[0] in command.commands, f"{program} has no command {words[0]}"
        command, *words = command.commands[words[0]], *words[1:]
    for parameter in command.params:
        options |= {*parameter.opts, *parameter.secondary_opts}
    return options, words


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_that_are_shown_exist(document: Path) -> None:
    for line in commands(document):
        program, *words = shlex.split(line.replace("[", "").replace("]", ""))
        options, rest = options_of(program, words)
        for word in rest:
            if word.startswith("--") and len(word) > 2:
                assert word.partition("=")[0] in options, f"{document.name}: {line}"


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_metrics_that_are_named_exist(document: Path) -> None:
    known = {family.name for family in (*WORKER_FAMILIES, *LEDGER_FAMILIES)} | gateway_names()
    named = set(re.findall(r"\bclipfleet_[a-z_]+[a-z]\b(?!/|\.)", document.read_text())) - {
        "clipfleet_gateway",
        "clipfleet_worker",
    }
    for name in named:
        short = next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)
        is_prefix = any(one.startswith(name) for one in known)
        assert name in known or short in known or is_prefix, f"{document.name} names {name}"


def test_limits_that_have_advice_exist() -> None:
    _, _, table = (
        (ROOT / "docs" / "performance.md").read_text().partition("| limit | what helps |\n|---|---|\n")
    )
    named = re.findall(r"^\| (\w+)", table.partition("\n\n")[0], re.MULTILINE)
    assert len(named) >= len(LimitingStep) - 3
    assert set(named) <= set(LimitingStep)


def test_every_page_builds_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    page = (tmp_path / "site" / "index.html").read_text()
    loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]*)"', page)
    assert loaded == []  # nothing external


def test_every_page_has_its_place() -> None:
    def names(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values() if isinstance(entry, dict) else entry:
                yield from names(value)

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(names(nav)) == sorted(
        str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")
    )
