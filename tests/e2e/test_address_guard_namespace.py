"""URLs that aim at internal addresses, in a network where every address leads to a listener that records.

The real command line and real workers run in a network namespace of their own, with a name server that
rebinds. A guard that leaks really connects there, wherever to.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import service_is_missing
from tests.e2e import address_guard_run as run
from tests.support.documents import ROOT

_SECONDS = 280
_NAMESPACE = ("unshare", "--map-root-user", "--net", "--mount")

pytestmark = [pytest.mark.timeout(_SECONDS + 10), pytest.mark.one_broker, pytest.mark.long]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    _need_namespaces()
    folder = tmp_path_factory.mktemp("closed-network")
    roots = [str(ROOT / "producer"), str(ROOT / "worker"), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [*_NAMESPACE, sys.executable, "-m", "tests.e2e.address_guard_run", folder],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, roots))},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    yield json.loads((folder / "report.json").read_text())
    shutil.rmtree(folder)


def _need_namespaces() -> None:
    resolv = "/etc/resolv.conf"
    try:
        probe = subprocess.run(
            [*_NAMESPACE, "mount", "--bind", resolv, resolv], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        service_is_missing("no program unshare")
    if probe.returncode:
        service_is_missing(f"no network namespace of one's own: {probe.stderr.strip()}")


def connections(report: dict[str, Any]) -> dict[tuple[str, int], int]:
    """Connections that were accepted by the address and port they were made to."""
    return {(host, port): count for host, port, count in report["accepted"]}


def wrong_rows(report: dict[str, Any]) -> list[str]:
    return [
        f"{row['uri']!r}: {row['error_code'] or row['status']} ({row['error_detail']}), not {row['expected']}"
        for row in report["rows"]
        if (row["error_code"] or row["status"]) != row["expected"]
    ]


def test_a_client_without_a_guard_reaches_each_of_these_addresses(reports: dict[str, Any]) -> None:
    """The test can fail: nothing but the guard stands between a worker and these listeners."""
    assert reports["default"]["controls"] == dict.fromkeys(run.INTERNAL, True)


def test_each_url_has_a_row_with_the_right_code(reports: dict[str, Any]) -> None:
    rows = reports["default"]["rows"]
    assert len(rows) == len(run.cases()) + run.IMAGES_ON_ONE_HOST + run.IMAGES_ON_A_DEAD_HOST
    assert wrong_rows(reports["default"]) == []


@pytest.mark.figures
def test_nothing_inside_was_connected_to(reports: dict[str, Any]) -> None:
    accepted = connections(reports["default"])
    assert set(accepted) - run.PUBLIC == {run.STORE}  # the operator's own S3 endpoint
    assert {(run.PUBLIC_V4, 80), (run.OTHER_PUBLIC, 80), (run.PUBLIC_V6, 80)} < set(accepted)
    hostile = [case for case in run.cases() if case.expected != "ok"]
    print(
        f"{len(hostile)} hostile URLs and redirect chains: "
        f"{sum(accepted[place] for place in set(accepted) - run.PUBLIC - {run.STORE})} connections inside"
    )


@pytest.mark.figures
def test_a_host_is_looked_up_once_and_not_for_each_image(reports: dict[str, Any]) -> None:
    questions = reports["default"]["questions"]
    good, dead = questions["many.test"], questions["gone.test"]
    print(f"{run.IMAGES_ON_ONE_HOST} images on one host: {good} questions to the name server")
    print(f"{run.IMAGES_ON_A_DEAD_HOST} images on a host that does not exist: {dead} questions")
    assert dead <= 8
    assert good <= 4  # IPv4 and IPv6, and once more should the job take a minute


def test_rebinding_was_tried(reports: dict[str, Any]) -> None:
    """The second question got the answer that leads inside."""
    for name in ("rebind.test", "rebind-metadata.test", "rebind-mixed.test"):
        assert reports["default"]["questions"][name] >= 4


def test_allowed_networks_are_open_and_nothing_else_is(reports: dict[str, Any]) -> None:
    report = reports["allowing"]
    assert len(report["rows"]) == len(run.cases_of_an_allowing_worker())
    assert wrong_rows(report) == []
    assert set(connections(report)) - run.PUBLIC == run.ALLOWED_CONNECTIONS
