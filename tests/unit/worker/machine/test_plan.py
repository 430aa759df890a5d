"""Devices and processes per device become worker processes with even shares of the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clipfleet.errors import UsageError
from clipfleet_worker.machine.plan import Machine, plan_processes, share_settings

GIB = 1 << 30


def machine(gpus: int = 0, *, cores: int = 16, memory: int = 128, gpu_memory: int = 80) -> Machine:
    return Machine((gpu_memory * GIB,) * gpus, cores, memory * GIB)


@pytest.mark.parametrize(
    ("text", "per_device", "gpus", "expected"),
    [
        ("all", "1", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", "1", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", "1", 0, ["cpu"]),
        ("cuda:2, cuda:0", "1", 3, ["cuda:2", "cuda:0"]),
        ("cuda", "1", 1, ["cuda:0"]),
        ("cpu,cuda:0", "2", 1, ["cpu/0", "cpu/1", "cuda:0/0", "cuda:0/1"]),
    ],
)
def test_devices_may_be_all_or_named(text: str, per_device: str, gpus: int, expected: list[str]) -> None:
    shares = plan_processes(text, per_device, machine(gpus))

    assert [share.name for share in shares] == expected
    assert [share.device for share in shares] == [name.split("/")[0] for name in expected]


@pytest.mark.parametrize(
    ("text", "on"), [("all", machine()), ("auto", replace(machine(), has_nvidia_gpu=True))]
)
def test_a_gpu_that_was_expected_is_not_replaced_by_the_cpu(text: str, on: Machine) -> None:
    with pytest.raises(UsageError, match=r"torch sees no GPU here; .*CLIPFLEET_DEVICE=cpu"):
        plan_processes(text, "auto", on)


def test_without_a_gpu_none_can_be_named() -> None:
    with pytest.raises(UsageError, match="cuda:0 does not exist; torch sees no GPU here"):
        plan_processes("cuda:0", "1", machine())


def test_cores_and_memory_are_divided() -> None:
    shares = plan_processes("all", "2", machine(2, cores=16, memory=128))
    assert [share.number for share in shares] == [0, 1, 2, 3]
    assert {(share.cores, share.memory_bytes) for share in shares} == {(4, 32 * GIB)}
    (small, _) = plan_processes("cpu", "2", machine(cores=1))
    assert small.cores == 1


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        (machine(0, cores=64), 1),  # the CPU: always one
        (machine(1, cores=7), 1),
        (machine(1, cores=8), 2),
        (machine(1, cores=16), 4),
        (machine(1, cores=16, gpu_memory=8), 1),  # two copies have no room
        (machine(1, cores=16, memory=15), 1),
        (machine(1, cores=200), 8),
        (machine(8, cores=64, memory=1024), 2),
        (machine(8, cores=128, memory=1024), 4),
    ],
)
def test_auto_goes_by_cores_and_memory_per_gpu(on: Machine, expected: int) -> None:
    assert len(plan_processes("auto", "auto", on)) == expected * max(1, len(on.gpus))


@pytest.mark.parametrize(
    ("text", "per_device", "message"),
    [
        ("", "1", "names no device"),
        (",", "1", "names no device"),
        ("tpu", "1", "'tpu' is not a device"),
        ("cuda:x", "1", "'cuda:x' is not a device"),
        ("cuda:", "1", "'cuda:' is not a device"),
        ("cuda:-1", "1", "'cuda:-1' is not a device"),
        ("cuda:2", "1", "cuda:2 does not exist; torch sees 2 GPUs here"),
        ("cuda:0,cuda", "1", "names cuda:0 twice"),
        ("cpu", "0", "'0' is neither auto nor a number from 1 to 64"),
        ("cpu", "-2", "neither auto nor a number"),
        ("cpu", "65", "neither auto nor a number"),
        ("cpu", "many", "neither auto nor a number"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option(text: str, per_device: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        plan_processes(text, per_device, machine(2))
    assert "--" in str(caught.value)


class TestSettings:
    def test_each_process_has_its_device_ports_and_share(self) -> None:
        shares = plan_processes("cpu", "2", machine(cores=6, memory=8))
        given = {"CLIPFLEET_HEALTH_PORT": "9000", "CLIPFLEET_READY_FILE": "/run/ready"}

        assert [share_settings(share, 2, given) for share in shares] == [
            {
                "CLIPFLEET_DEVICE": "cpu",
                "CLIPFLEET_HEALTH_PORT": str(9000 + number),
                "CLIPFLEET_READY_FILE": f"/run/ready.{number}",
                "CLIPFLEET_DECODE_THREADS": "3",
                "CLIPFLEET_MAX_MEMORY_BYTES": str(4 * GIB),
                "OMP_NUM_THREADS": "3",
            }
            for number in (0, 1)
        ]

    def test_what_the_user_has_set_stands(self) -> None:
        (share, _) = plan_processes("cpu", "2", machine())
        given = {
            "CLIPFLEET_HEALTH_PORT": "0",  # each takes a free one
            "CLIPFLEET_DECODE_THREADS": "5",
            "CLIPFLEET_MAX_MEMORY_BYTES": "1000000",
            "OMP_NUM_THREADS": "1",
        }
        assert share_settings(share, 2, given) == {"CLIPFLEET_DEVICE": "cpu"}

    def test_zero_means_that_we_choose(self) -> None:
        (share, _) = plan_processes("cpu", "2", machine())
        assert share_settings(share, 2, {"CLIPFLEET_DECODE_THREADS": "0"})["CLIPFLEET_DECODE_THREADS"] == "8"

    def test_a_process_that_is_alone_has_the_machine(self) -> None:
        (share,) = plan_processes("cpu", "1", machine())
        assert share_settings(share, 1, {}) == {"CLIPFLEET_DEVICE": "cpu"}
