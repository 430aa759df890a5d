"""The nightly runs of docs/backfill.md are valid, and run the command of the page."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.conftest import service_is_missing
from tests.support.documents import ROOT, blocks

PAGE = ROOT / "docs" / "backfill.md"
KUBERNETES = "1.33"


def block(language: str, words: str = "") -> str:
    (found,) = [one.text for one in blocks(PAGE) if one.language == language and words in one.text]
    return found


def section(unit: str, name: str) -> dict[str, list[str]]:
    """Settings of a section of a unit; each may be given several times."""
    lines = unit.partition(f"[{name}]\n")[2].partition("\n[")[0].splitlines()
    settings: dict[str, list[str]] = {}
    for line in filter(None, lines):
        key, _, value = line.partition("=")
        settings.setdefault(key, []).append(value)
    return settings


def cron_command() -> list[str]:
    """As cron runs it: `%` without a backslash would be a line end."""
    fields = block("crontab").splitlines()[-1].split(maxsplit=5)
    assert fields[:5] == ["15", "2", "*", "*", "*"]
    command = re.sub(r"(?<!\\)%", "\n", fields[5]).replace("\\%", "%")
    return ["/bin/sh", "-c", command.replace("/etc/clipfleet.env", "/dev/null")]


def systemd_command() -> list[str]:
    (start,) = section(block("ini", ".service"), "Service")["ExecStart"]
    assert "%" not in start.replace("%%", ""), "a specifier of systemd"
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(start)]


def container() -> dict[str, Any]:
    spec = yaml.safe_load(block("yaml"))["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (found,) = spec["containers"]
    return dict(found)


def kubernetes_command() -> list[str]:
    return list(container()["command"])


class FakeDag:
    """Takes what the DAG of Airflow takes; see its documentation."""

    def __init__(self, dag_id: str, **options: Any) -> None:
        assert (dag_id, options["schedule"], options["catchup"]) == ("clipfleet-nightly", "15 2 * * *", False)
        assert options["max_active_runs"] == 1

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def airflow_command() -> list[str]:
    """The one task of the DAG, which is run here without Airflow."""
    tasks: list[dict[str, Any]] = []
    operators = "airflow.providers.standard.operators.bash"
    modules = {name: ModuleType(name) for name in ("airflow", "airflow.sdk", operators)}
    vars(modules["airflow.sdk"])["DAG"] = FakeDag
    vars(modules[operators])["BashOperator"] = lambda **task: tasks.append(task)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        dag = Path(folder) / "dag.py"
        dag.write_text(block("python", "airflow"))
        runpy.run_path(str(dag))
    (task,) = tasks
    assert (task["skip_on_exit_code"], task["append_env"]) == (3, True)
    return ["/bin/sh", "-c", task["bash_command"]]


def page_command() -> list[str]:
    return ["/bin/sh", "-c", block("sh", "clipfleet backfill s3://photos/ ")]


@pytest.fixture
def ran(tmp_path: Path) -> Any:
    """Runs a command with a `clipfleet` that prints its arguments."""
    program = tmp_path / "clipfleet"
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    program.chmod(0o755)

    def run(command: list[str]) -> list[str]:
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert result.stderr == ""
        return result.stdout.splitlines()

    return run


@pytest.mark.parametrize(
    "command", [cron_command, systemd_command, kubernetes_command, airflow_command, page_command]
)
def test_each_runs_the_command_of_the_page(command: Any, ran: Any) -> None:
    assert ran(command()) == ["backfill", "s3://photos/", "--store", "s3://vectors/photos"]


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        service_is_missing("systemd is not installed")
    units = []
    for kind in (".service", ".timer"):
        unit = tmp_path / f"clipfleet-nightly{kind}"
        text = block("ini", kind)
        assert text.startswith(f"# /etc/systemd/system/{unit.name}\n")
        unit.write_text(text)
        units.append(unit)

    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert "clipfleet-nightly" not in result.stderr, result.stderr


def test_kubernetes_takes_the_cron_job() -> None:
    job = yaml.safe_load(block("yaml"))
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    workers = yaml.safe_load((ROOT / "ops" / "kubernetes" / "base" / "worker.yaml").read_text())
    (worker,) = workers["spec"]["template"]["spec"]["containers"]
    assert container()["envFrom"][0] in worker["envFrom"]
    assert container()["securityContext"] == worker["securityContext"]
    # The root file system is read-only, and an output in S3 needs scratch files.
    assert {"name": "tmp", "mountPath": "/tmp"} in container()["volumeMounts"]


def test_the_exit_codes_are_treated_alike() -> None:
    """1 is tried again, 2 and 4 are not."""
    service = section(block("ini", ".service"), "Service")
    rules = yaml.safe_load(block("yaml"))["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert service["Restart"] == ["on-failure"]
    assert service["SuccessExitStatus"] == ["3"]
    assert service["RestartPreventExitStatus"] == ["2 4"]
    assert rules == [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2, 3, 4]}}]
