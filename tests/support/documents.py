"""Reads the project's Markdown files as what they are: tables, fenced blocks and the notes above them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

_FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,})\s*(?P<language>[\w+-]*)")
_CELL_BORDER = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    language: str
    text: str
    note: str  # the line above it if that is an HTML comment, else empty
    where: str  # for messages: README.md:12


def blocks(document: Path) -> list[Block]:
    """All fenced blocks, in order."""
    found = []
    lines = document.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        if opening is None:
            number += 1
            continue
        above = lines[number - 1].strip() if number else ""
        end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == opening["fence"])
        found.append(
            Block(
                language=opening["language"].lower(),
                text="\n".join(lines[number + 1 : end]) + "\n",
                note=above if above.startswith("<!--") else "",
                where=f"{document.relative_to(ROOT)}:{number + 1}",
            )
        )
        number = end + 1
    return found


def table(document: Path, *header: str) -> list[list[str]]:
    """Rows of the one table with this header, each as its cells' text."""
    lines = document.read_text(encoding="utf-8").splitlines()
    starts = [number for number, line in enumerate(lines) if _cells(line) == list(header)]
    if len(starts) != 1:
        raise AssertionError(f"{document.name} has {len(starts)} tables with the header {header}")
    rows = []
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(_cells(line))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in _CELL_BORDER.split(line.strip().strip("|"))]


def documents() -> list[Path]:
    """Documents whose commands a reader may copy."""
    found = [
        README,
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("ops/**/README.md"),
    ]
    return [path for path in found if "node_modules" not in path.parts and not path.is_symlink()]


def repository_files() -> list[Path]:
    """Files of the repository, those included that are not committed yet."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    paths = (ROOT / name.decode() for name in listing.split(b"\0") if name)
    return [path for path in paths if path.is_file()]
