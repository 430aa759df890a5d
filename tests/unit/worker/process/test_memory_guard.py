"""When a process has too much memory, and how much that is on machines and in containers of all sorts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from clipfleet_worker.process.memory_guard import MemoryGuard, memory_limit, own_memory

MACHINE_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def run_python(code: str) -> list[int]:
    """The numbers that a program prints."""
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    return [int(number) for number in answer.stdout.split()]


class Process:
    """Takes note of its end; `looks` at its memory come one after the other, the last one stays."""

    def __init__(self, used_bytes: int | None) -> None:
        self.looks: list[int | OSError | None] = [used_bytes]
        self.ends: list[object] = []

    def used_bytes(self) -> int | None:
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(found, OSError):
            raise found
        return found

    def guard(self, limit_bytes: int, growth_bytes: int = 1 << 40) -> MemoryGuard:
        return MemoryGuard(
            limit_bytes, growth_bytes=growth_bytes, used_bytes=self.used_bytes, exit_process=self.ends.append,
            dump_stacks=lambda: self.ends.append("stacks"),
        )  # fmt: skip


class TestGuard:
    def test_beyond_it_the_process_ends_with_its_stacks(self, caplog: pytest.LogCaptureFixture) -> None:
        process = Process(300 << 20)
        process.guard(200 << 20).check()

        assert process.ends == ["stacks", 70]
        assert "300 MiB" in caplog.text
        assert "CLIPFLEET_MAX_MEMORY_BYTES is 200 MiB" in caplog.text

    def test_growth_while_an_image_is_read(self, caplog: pytest.LogCaptureFixture) -> None:
        process = Process(10 << 20)
        guard = process.guard(1 << 40, growth_bytes=100 << 20)
        with guard.new_reading():
            process.looks = [110 << 20]
            guard.check()
            assert process.ends == []
            with guard.new_reading():
                process.looks = [150 << 20]
                guard.check()

        assert process.ends == ["stacks", 70]
        assert "grew by 140 MiB" in caplog.text

    def test_growth_while_none_is_read(self) -> None:
        process = Process(10 << 20)
        guard = process.guard(1 << 40, growth_bytes=100 << 20)
        reading = guard.new_reading()
        with reading:
            pass
        process.looks = [500 << 20]
        guard.check()
        with reading:
            guard.check()

        assert process.ends == []

    def test_it_ends_where_the_system_does_not_report_memory(self) -> None:
        guard = Process(None).guard(1)
        assert not guard.check()
        guard.start()
        guard.stop()

    def test_a_look_for_which_no_file_can_be_opened_is_left_out(self) -> None:
        process = Process(0)
        process.looks = [10, OSError(errno.EMFILE, "Too many open files"), 500]
        guard = process.guard(100)

        assert guard.check()
        assert process.ends == []
        assert guard.check()
        assert process.ends == ["stacks", 70]

    def test_up_to_the_limit_it_goes_on_until_it_is_stopped(self) -> None:
        process = Process(100)
        guard = process.guard(100)
        assert guard.check()
        guard.start()
        guard.stop()
        guard.stop()
        assert process.ends == []


class TestOwnMemory:
    def test_what_is_allocated_is_seen_and_what_is_freed_too(self) -> None:
        """In a process of its own: other tests' threads allocate meanwhile."""
        before, during, after = run_python(
            """
            from clipfleet_worker.process.memory_guard import own_memory
            before = own_memory()
            taken = bytearray(b"x" * (1 << 16)) * 1024
            during = own_memory()
            del taken
            print(before, during, own_memory())
            """
        )

        assert during - before > 50 << 20
        assert during - after > 50 << 20

    def test_files_and_shared_memory_do_not_count(self, tmp_path: Path) -> None:
        (tmp_path / "statm").write_text("5000 400 100 9 0 700 0\n")
        assert own_memory(tmp_path) == 300 * os.sysconf("SC_PAGE_SIZE")

    def test_a_system_that_does_not_tell(self, tmp_path: Path) -> None:
        assert own_memory(tmp_path) is None


MACHINE = int(MACHINE_BYTES * 0.9)
SMALL = 1 << 20  # less than any machine has
CONTAINER = int(SMALL * 0.9)
V1 = "12:cpu,cpuacct:/x\n5:memory:/docker/7\n1:name=systemd:/x\n"


LIMITS: dict[str, tuple[str, dict[str, object], int]] = {
    "a machine without groups": ("", {}, MACHINE),
    "a container": ("0::/\n", {"memory.max": SMALL}, CONTAINER),
    "the smallest of a group and those above it": (
        "0::/a/b/c\n",
        {"a/b/c/memory.max": "max", "a/b/memory.max": SMALL, "a/memory.max": SMALL * 2},
        CONTAINER,
    ),
    "no limit": ("0::/a\n", {"a/memory.max": "max"}, MACHINE),
    "version 1": (V1, {"memory/docker/7/memory.limit_in_bytes": SMALL}, CONTAINER),
    "version 1, no limit": (
        "5:memory:/\n",
        {"memory/memory.limit_in_bytes": (1 << 63) - 4096},
        MACHINE,
    ),
}


@pytest.mark.parametrize(("groups", "limits", "expected"), LIMITS.values(), ids=LIMITS)
def test_the_limit_is_the_setting_or_most_of_what_machine_and_container_have(
    tmp_path: Path, groups: str, limits: dict[str, object], expected: int
) -> None:
    files = {f"sys/fs/cgroup/{name}": f"{limit}\n" for name, limit in limits.items()}
    for name, text in {"proc/self/cgroup": groups, **files}.items() if groups else ():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert (memory_limit(0, tmp_path), memory_limit(123, tmp_path)) == (expected, 123)
