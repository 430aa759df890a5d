"""Makefile, CI and hooks name what exists, and run the same checks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import clipfleet
from tests.support.documents import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    heads = re.findall(r"^([a-z][\w -]*):(?!=)", text, flags=re.MULTILINE)
    return {name for head in heads for name in head.split()}


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


@pytest.mark.parametrize("file", [*WORKFLOWS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_what_ci_calls_exists(file: Path) -> None:
    text = file.read_text()
    command = r"^ *(?:- run: )?(?:make|in_clone)((?: [A-Z_]+=\S+)*) ([a-z][\w-]*)"
    called = {name for _, name in re.findall(command, text, flags=re.MULTILINE)}

    assert called
    assert called <= make_targets()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_use_known_actions_and_commands(workflow: Path) -> None:
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
        elif not step["run"].startswith(("make ", "sudo apt-get ")):
            assert (ROOT / step["run"]).stat().st_mode & 0o111


def test_hooks_run_what_lint_runs() -> None:
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert lint
    linted = {re.sub(r"\$\(BIN\)/| --check| \.$", "", line.strip()) for line in lint[1].splitlines()}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]

    assert {re.sub(r"\.venv/bin/| --[\w-]+", "", hook["entry"]) for hook in hooks} == linted


def test_there_is_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert clipfleet.__version__ == project["version"]
