"""The tree follows the path of a chunk: folders import downwards only, and each says what belongs in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.documents import ROOT

# Lowest level first. A box is a folder or a module at the top of a package; it imports lower boxes only.
# A new box goes one level above the highest that it imports; a new package gets an entry of its own.
LEVELS: Mapping[str, Sequence[str]] = {
    "clipfleet": (
        "__init__ allocator errors wording",
        "contract redis s3 tracing",
        "settings labels ledger sources heads",
        "hints outputs terminal webhooks",
        "parts",
        "store",
        "submit results",
        "resume marking relabel moderation",
        "exports",
        "job_handle",
        "backfill replay",
        "client",
        "evaluation",
        "training search report",
        "commands",
        "__main__",
    ),
    "clipfleet_gateway": (
        "__init__ errors meters settings",
        "looks",
        "keys known_models",
        "policies",
        "files",
        "shapes",
        "inputs",
        "batches jobs",
        "services",
        "asking",
        "web",
        "server",
        "commands",
        "__main__",
    ),
    "clipfleet_worker": (
        "__init__ pixel_spec",
        "failures outcomes",
        "process",
        "fetch decode encode machine",
        "settings models sinks",
        "score stores webhooks",
        "chunk",
        "finish status",
        "hints",
        "assembly",
        "doctor",
        "cli",
        "__main__",
    ),
}
# Other packages of ours that a package may import.
USES = {"clipfleet": (), "clipfleet_gateway": ("clipfleet",), "clipfleet_worker": ("clipfleet",)}
PACKAGES = {
    door.parent.name: door.parent
    for top in ("producer", "worker")
    for door in ROOT.glob(f"{top}/*/__init__.py")
}

MOST_FILES, MOST_FILES_AT_THE_TOP = 17, 9
MOST_LINES = 2  # of the paragraph that says what belongs in a folder


def files(package: Path) -> list[Path]:
    return [path for path in sorted(package.rglob("*.py")) if "__pycache__" not in path.parts]


def boxes(package: Path) -> set[str]:
    return {path.relative_to(package).parts[0].removesuffix(".py") for path in files(package)}


def imported_names(code: str, module: str) -> Iterator[str]:
    """Dotted names of all that a module imports, anywhere in it, also by `import_module("x")`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))


def arrows(package: Path, others: Sequence[str] = ()) -> set[tuple[str, str]]:
    """Which box imports which: `box` inside the package, `other.` for another package of ours."""
    known, found = boxes(package), set()
    for path in files(package):
        inside = path.relative_to(package).with_suffix("")
        for name in imported_names(path.read_text(encoding="utf-8"), ".".join([package.name, *inside.parts])):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if top == package.name:
                found.add((inside.parts[0], target if target in known else "__init__"))
            elif top in others:
                found.add((inside.parts[0], f"{top}."))
    return {(box, target) for box, target in found if box != target}


def not_downwards(found: set[tuple[str, str]], levels: Sequence[str], uses: Sequence[str] = ()) -> list[str]:
    """Arrows that do not lead to a lower level; those to another package must lead to one that is used."""
    height = {box: number for number, level in enumerate(levels) for box in level.split()}
    may = {f"{package}." for package in uses}
    return sorted(
        f"{box} imports {target}"
        for box, target in found
        if target not in may and height.get(target, len(levels)) >= height.get(box, -1)
    )


def without_level(found: set[str], levels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Boxes that have no level, and names that are no box or stand twice."""
    listed = [box for level in levels for box in level.split()]
    return sorted(found - set(listed)), sorted(
        box for box in set(listed) if box not in found or listed.count(box) > 1
    )


def crowded(package: Path) -> list[str]:
    """Folders that hold more modules than a reader takes in at once."""
    found = []
    for folder in sorted({path.parent for path in files(package)}):
        count = len(list(folder.glob("*.py")))
        if count > (MOST_FILES_AT_THE_TOP if folder == package else MOST_FILES):
            found.append(f"{folder.relative_to(package.parent)} holds {count}")
    return found


def unsaid(package: Path) -> list[str]:
    """Folders whose `__init__` does not open with a short paragraph on what belongs there."""
    found = []
    for folder in sorted({path.parent for path in files(package)}):
        door = folder / "__init__.py"
        said = ast.get_docstring(ast.parse(door.read_text(encoding="utf-8"))) if door.exists() else None
        if not said or len(said.partition("\n\n")[0].splitlines()) > MOST_LINES:
            found.append(str(folder.relative_to(package.parent)))
    return found


def test_every_package_has_its_levels() -> None:
    assert set(PACKAGES) == set(LEVELS) == set(USES)


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
class TestPackage:
    def test_each_folder_and_top_module_has_one_level(self, package: Path) -> None:
        assert without_level(boxes(package), LEVELS[package.name]) == ([], [])

    def test_imports_lead_downwards_only(self, package: Path) -> None:
        found = arrows(package, tuple(LEVELS))

        assert found
        assert not_downwards(found, LEVELS[package.name], USES[package.name]) == []

    def test_no_folder_is_crowded(self, package: Path) -> None:
        assert crowded(package) == []

    def test_each_folder_opens_with_what_belongs_there(self, package: Path) -> None:
        assert unsaid(package) == []


def plant(package: Path, **modules: str) -> Path:
    """A package with these modules; `__` in a name is a folder's border."""
    for name, code in modules.items():
        path = package / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    for folder in {path.parent for path in files(package)}:
        (folder / "__init__.py").write_text('"""Planted."""')
    return package


class TestTheChecksThemselves:
    """A made-up package of three levels: `errors`, then `ledger` and `sources`, then `client`."""

    LEVELS = ("__init__ errors wording", "ledger sources", "client")

    @pytest.mark.parametrize(
        ("module", "code", "broken"),
        [
            ("client", "from ours.ledger import jobs", []),
            ("client", "from ours.errors import Broken\nimport ours.ledger.jobs", []),
            ("ledger__jobs", "from ours.ledger import keys", []),
            ("ledger__jobs", "from base.text import words", []),
            ("ledger__jobs", "from .keys import KEY", []),
            ("ledger__jobs", "from ours import __version__", []),
            ("ledger__jobs", "from ours.sources import walk", ["ledger imports sources"]),
            ("ledger__jobs", "from ours import client", ["ledger imports client"]),
            ("ledger__jobs", "def f():\n  import ours.client", ["ledger imports client"]),
            ("ledger__jobs", "if TYPE_CHECKING:\n  from ours.client import C", ["ledger imports client"]),
            ("ledger__jobs", "importlib.import_module('ours.client')", ["ledger imports client"]),
            ("ledger__jobs", "from ..client import C", ["ledger imports client"]),
            ("ledger__jobs", "from .. import client", ["ledger imports client"]),
            ("errors", "import ours.ledger", ["errors imports ledger"]),
            ("errors", "import door.http", ["errors imports door."]),
            ("ledger__deep__jobs", "import ours.client", ["ledger imports client"]),
            ("attic", "import ours.errors", ["attic imports errors"]),
        ],
    )
    def test_what_leads_upwards(self, tmp_path: Path, module: str, code: str, broken: list[str]) -> None:
        others = {"errors": "", "ledger__keys": "", "sources__walk": "", "client": ""}
        package = plant(tmp_path / "ours", **{**others, module: code})

        found = arrows(package, ("ours", "base", "door"))

        assert not_downwards(found, self.LEVELS, ("base",)) == broken

    def test_what_has_no_level(self) -> None:
        assert without_level({"errors", "ledger", "attic"}, ("errors", "ledger gone", "ledger")) == (
            ["attic"],
            ["gone", "ledger"],
        )

    @pytest.mark.parametrize(
        ("folder", "count", "found"),
        [("", 8, []), ("", 9, ["ours holds 10"]), ("in__", 16, []), ("in__", 17, ["ours/in holds 18"])],
    )
    def test_what_is_crowded(self, tmp_path: Path, folder: str, count: int, found: list[str]) -> None:
        package = plant(tmp_path / "ours", **{f"{folder}m{number}": "" for number in range(count)})

        assert crowded(package) == found

    @pytest.mark.parametrize(
        ("said", "found"),
        [
            ('"""One.\nTwo."""', []),
            ('"""One.\n\nOf the protocol:\nthree\nlines."""', []),
            ('"""One,\ntwo,\nthree."""', ["ours/ledger"]),
            ("", ["ours/ledger"]),
            (None, ["ours/ledger"]),
        ],
    )
    def test_what_is_unsaid(self, tmp_path: Path, said: str | None, found: list[str]) -> None:
        package = plant(tmp_path / "ours", ledger__jobs="")
        door = package / "ledger" / "__init__.py"
        door.unlink() if said is None else door.write_text(said)

        assert unsaid(package) == found
