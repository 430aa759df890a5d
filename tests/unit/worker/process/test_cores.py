"""How many CPUs a worker may use, and how decoding and the forward pass share them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from clipfleet_worker.process import cores
from clipfleet_worker.process.cores import cpus, decode_threads, set_forward_threads


@pytest.fixture(autouse=True)
def _cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cores, "cpus", lambda: 3)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_core_has_a_thread_that_decodes_unless_the_setting_says_otherwise() -> None:
    assert (decode_threads(0), decode_threads(7)) == (3, 7)


@pytest.mark.parametrize(("variable", "threads"), [(None, 3), ("", 3), ("2", 1)])
def test_torch_gets_a_thread_per_core_unless_the_user_has_set_its_own(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    torch.set_num_threads(1)
    set_forward_threads()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        ("0::/", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/", {"cpu.max": "max 100000\n"}, 64),
        ("0::/", {"cpu.max": "9900000 100000\n"}, 64),
        ("0::/a/b", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/not/mounted", {"cpu.max": "400000 100000\n"}, 4),
        (
            "4:cpu,cpuacct:/docker/x",
            {"cpu/docker/x/cpu.cfs_quota_us": "150000\n", "cpu/docker/x/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("3:cpuset:/", {"cpuset/cpu.cfs_quota_us": "100000\n", "cpuset/cpu.cfs_period_us": "100000\n"}, 64),
        ("0::/", {"cpu.max": "nonsense"}, 64),
        ("0::/", {}, 64),
    ],
)
def test_what_a_container_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: Mapping[str, str], count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cpus(tmp_path) == 64, "a machine without control groups"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{groups}\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert cpus(tmp_path) == count
