"""Manners of both command lines: quick to start, options in groups, an example in each help."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from clipfleet.commands import app as clipfleet
from clipfleet.commands.options import JOB_OPTIONS
from clipfleet.terminal.console import with_options
from clipfleet.terminal.help import GROUPS
from clipfleet_gateway.commands import app as clipfleet_gateway
from clipfleet_worker.cli.commands import app as clipfleet_worker
from tests.support.documents import ROOT

# Each takes 50 ms or more to import.
HEAVY = {
    "celery",
    "kombu",
    "amqp",
    "pyarrow",
    "numpy",
    "redis",
    "boto3",
    "botocore",
    "torch",
    "PIL",
    "aiohttp",
}
PROGRAMS: dict[str, Any] = {
    "clipfleet": typer.main.get_command(clipfleet),
    "clipfleet-gateway": typer.main.get_command(clipfleet_gateway),
    "clipfleet-worker": typer.main.get_command(clipfleet_worker),
}
APPS = {"clipfleet": clipfleet, "clipfleet-gateway": clipfleet_gateway, "clipfleet-worker": clipfleet_worker}


def below(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command and all below it, each with the words that call it."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from below(f"{words} {name}", inner)


COMMANDS = {words: one for name, program in PROGRAMS.items() for words, one in below(name, program)}


@pytest.mark.parametrize(
    "line",
    [
        "clipfleet --version",
        "clipfleet --help",
        "clipfleet classify --help",
        "clipfleet results -h",
        "clipfleet",
        "clipfleet-gateway --help",
        "clipfleet-gateway keys add -h",
        "clipfleet-worker --version",
        "clipfleet-worker --help",
        "clipfleet-worker up -h",
    ],
)
def test_help_imports_nothing_heavy(line: str) -> None:
    program, *words = line.split()
    assert not HEAVY & set(imported(program, *words)), line


def test_completion_imports_nothing_heavy() -> None:
    completion = {"_CLIPFLEET_COMPLETE": "complete_bash", "COMP_WORDS": "clipfleet cla", "COMP_CWORD": "1"}
    assert not HEAVY & set(imported("clipfleet", **completion))


@pytest.mark.parametrize("line", ["clipfleet jobs", "clipfleet status j1", "clipfleet cancel j1"])
def test_commands_of_the_ledger_import_redis_only(line: str) -> None:
    program, *words = line.split()
    loaded = set(imported(program, *words, CLIPFLEET_REDIS_URL="redis://127.0.0.1:1/0"))
    assert HEAVY & loaded == {"redis"}, line


def imported(program: str, *words: str, **variables: str) -> list[str]:
    """Names of the modules that a command line imports."""
    module = program.replace("-", "_")
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", module, *words],
        env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in run.stderr, run.stderr
    names = [line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if "import time:" in line]
    assert "typer" in names
    return names


@pytest.mark.parametrize("words", COMMANDS)
class TestHelp:
    def test_is_complete_at_80_columns(self, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        program, *rest = words.split()

        short, long = (CliRunner().invoke(APPS[program], [*rest, name]) for name in ("-h", "--help"))

        assert (short.exit_code, short.output) == (0, long.output)
        assert "Usage:" in long.output and "<bool>" not in long.output
        assert "…" not in long.output, "cut off"
        assert f"\n Example: {example(words)}" in long.output, "the example stands on one line"

    def test_every_option_is_in_a_group(self, words: str) -> None:
        command = COMMANDS[words]
        with command.make_context(words, [], resilient_parsing=True) as context:
            options = [one for one in command.get_params(context) if one.param_type_name == "option"]
        shown = [one for one in options if not one.hidden]
        assert shown
        assert [one.opts for one in shown if one.rich_help_panel not in GROUPS] == []

    def test_the_example_parses(self, words: str) -> None:
        line = shlex.split(example(words))
        while "=" in line[0]:
            line.pop(0)
        names = [name for name in COMMANDS if line[: len(name.split())] == name.split()]
        called = max(names, key=len)
        assert called == words or hasattr(COMMANDS[words], "commands"), "an example of this command"
        arguments = line[len(called.split()) :]
        with COMMANDS[called].make_context(called, arguments) as context:
            assert not context.args


def example(words: str) -> str:
    """The example of a command's help."""
    kind, _, line = COMMANDS[words].epilog.partition(": ")
    assert kind == "Example"
    return str(line)


@pytest.mark.parametrize(
    ("line", "long"),
    [
        ("clipfleet classify photos -o out -m demo", {"output": "out", "model": "demo"}),
        ("clipfleet embed photos -o out -m demo", {"output": "out", "model": "demo"}),
        ("clipfleet run job.yaml -o out", {"output": "out"}),
        ("clipfleet-worker run -m demo", {"models": "demo"}),
        ("clipfleet-worker up -m demo", {"models": "demo"}),
        ("clipfleet-worker doctor -o s3://vectors/x", {"output": ["s3://vectors/x"]}),
    ],
)
def test_short_options(line: str, long: dict[str, object]) -> None:
    program, name, *arguments = line.split()
    with PROGRAMS[program].commands[name].make_context(name, arguments) as context:
        assert {key: context.params[key] for key in long} == long


def long_options(words: str) -> set[str]:
    return {name for one in COMMANDS[words].params for name in one.opts if name.startswith("--")}


def test_an_option_in_an_error_is_shown_as_the_command_line_has_it() -> None:
    fields = [*JOB_OPTIONS, "text_column", "top_k", "label_set_column"]
    shown = {with_options(f"`{field}=`") for field in fields}

    assert shown <= long_options("clipfleet classify") | long_options("clipfleet embed-text")
    assert with_options("give `output=`, or `overwrite=True`") == "give --output, or --overwrite"
    assert with_options("`clipfleet jobs` and `a=b`") == "`clipfleet jobs` and `a=b`"


def test_errors_of_the_library_name_options_as_python_does() -> None:
    """Outside of the command line's own modules; `clipfleet-worker up --root DIR` is a whole command."""
    options = set().union(*(long_options(words) for words in COMMANDS if words.startswith("clipfleet ")))
    pattern = re.compile("|".join(rf"{name}(?![\w-])" for name in options - {"--max-error-rate"}))
    of_the_command_line = ("commands/", "terminal/", "settings.py", "results/formats.py")
    for path in sorted((ROOT / "producer" / "clipfleet").rglob("*.py")):
        if str(path.relative_to(ROOT / "producer" / "clipfleet")).startswith(of_the_command_line):
            continue
        tree = ast.parse(path.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                text = re.sub(r"`clipfleet[^`]+`", "", node.value)
                assert not pattern.search(text), f"{path}:{node.lineno}: {node.value}"
