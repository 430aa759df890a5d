"""The lock files fit pyproject.toml, name hashes only, and are what CI and images install."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ops.locks import audit
from ops.locks.__main__ import EXTRAS, HERE, OF_TORCH
from tests.support.documents import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("ci.txt", "worker.txt", "producer.txt", "torch.txt")
PINNED = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)", re.MULTILINE)


def locked(name: str) -> dict[str, set[str]]:
    """Versions by package: numpy has two, for old and new Pythons."""
    found: dict[str, set[str]] = {}
    for match in PINNED.finditer((HERE / name).read_text()):
        found.setdefault(canonicalize_name(match["name"]), set()).add(match["version"])
    return found


def required(extras: tuple[str, ...]) -> list[Requirement]:
    texts = [*PROJECT["dependencies"]]
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    return [one for one in map(Requirement, texts) if one.name != "clipfleet"]


@pytest.mark.parametrize("name", EXTRAS)
def test_everything_required_is_locked_in_a_version_that_fits(name: str) -> None:
    versions = locked(name) | locked("torch.txt")

    wrong = [
        str(one)
        for one in required(EXTRAS[name])
        if not (found := versions.get(canonicalize_name(one.name), set()))
        or not all(one.specifier.contains(version) for version in found)
    ]

    assert wrong == [], "run `make lock`"


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_hashes_and_no_place_of_its_own(name: str) -> None:
    text = (HERE / name).read_text()
    entries = re.split(r"\n(?=\S)", text[text.index("==") :])

    assert len(entries) > 10
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert "index" not in re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


def test_torch_is_in_its_own_file() -> None:
    assert not {name for name in locked("ci.txt") | locked("worker.txt") if name.startswith(OF_TORCH)}
    wanted = {match["name"]: {match["version"]} for match in PINNED.finditer((HERE / "torch.in").read_text())}
    assert {name: versions for name, versions in locked("torch.txt").items() if name in wanted} == wanted


def test_what_builds_the_package_in_the_image_is_locked() -> None:
    builds = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert {canonicalize_name(Requirement(one).name) for one in builds} <= set(locked("worker.txt"))


def test_they_are_used() -> None:
    assert "LOCK=ops/locks/ci.txt" in (ROOT / ".ci" / "run").read_text()
    image = (ROOT / "ops" / "docker" / "worker.Dockerfile").read_text()
    assert "--require-hashes --no-deps --requirement ops/locks/worker.txt" in image
    assert "--require-hashes --no-deps --requirement ops/locks/torch.txt" in image
    producers = (ROOT / "ops" / "docker" / "producer.Dockerfile").read_text()
    assert "--require-hashes --no-deps --requirement ops/locks/producer.txt" in producers
    assert re.search(r"^lock:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


GOOD = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "version": "1", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("answer", "said", "strict_code"),
    [
        (None, "skipped: pip-audit gave no answer: no network", 0),
        ([UNKNOWN], "skipped: the service knows none of the 1 packages: not found", 0),
        ([GOOD, UNKNOWN], "1 of 2 packages asked about, 0 known vulnerabilities", 0),
        ([GOOD, BAD], "b 2: X-1, mended in 3\n2 of 2 packages asked about, 1 known vulnerabilities", 1),
    ],
    ids=["no answer", "nothing known", "good", "bad"],
)
def test_what_the_audit_says(
    answer: list[dict[str, Any]] | None,
    said: str,
    strict_code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(audit, "_asked", lambda _: (answer, "no network"))

    assert audit.main(["lock.txt"]) == 0
    assert capsys.readouterr().out.strip() == said
    assert audit.main(["lock.txt", "--strict"]) == strict_code
