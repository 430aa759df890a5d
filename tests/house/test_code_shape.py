"""Rules of the house that no linter checks: docstrings, lengths, broad handlers, vague names, imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.documents import ROOT

MAX_FUNCTION_LINES = 60
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
HEAVY = {"torch", "torchvision", "PIL", "open_clip", "simplejpeg", "aiohttp"}
OF_THE_GATEWAY = {"aiohttp"}  # its extra brings it
BROAD = {"Exception", "BaseException"}

# The boundaries of the programs, the only places that catch all and continue: tasks, requests, batches.
MAY_SWALLOW = {
    ("clipfleet_worker/hints/tasks.py", "work"),
    ("clipfleet_worker/hints/tasks.py", "_work"),
    ("clipfleet_worker/hints/tasks.py", "finish_job"),
    ("clipfleet_worker/hints/tasks.py", "_finish"),
    ("clipfleet_worker/webhooks/courier.py", "_deliver"),
    ("clipfleet_gateway/asking/asker.py", "_run"),
    ("clipfleet_gateway/asking/ends.py", "_read"),
    ("clipfleet_gateway/asking/work_hints.py", "_run"),
    ("clipfleet_gateway/web/guards.py", "answer_errors"),
    ("clipfleet_gateway/web/tending.py", "_look"),
    ("clipfleet_gateway/web/tending.py", "_tend"),
}


# Functions on arrays: they need numpy (extra `[analysis]`), and only functions import them.
ARRAY_MODULES = {
    f"clipfleet/labels/{name}.py"
    for name in ("calibrating", "comparing", "metrics", "sampling", "thresholds")
} | {f"clipfleet/marking/{name}.py" for name in ("calibration", "certification", "drawing", "scored_rows")}
ARRAY_MODULES |= {
    f"clipfleet/heads/{name}.py"
    for name in ("arithmetic", "cross_validation", "fitting", "fitting_from_labels", "foreign", "importing")
}
ARRAY_MODULES.add("clipfleet/report/to_mark.py")


@dataclass(frozen=True)
class Module:
    name: str  # clipfleet/ledger/jobs.py
    tree: ast.Module

    def __str__(self) -> str:
        return self.name


def modules(*folders: str) -> list[Module]:
    found = []
    for folder in folders:
        for path in sorted((ROOT / folder).glob("**/*.py")):
            name = str(path.relative_to(ROOT / folder))
            found.append(Module(name, ast.parse(path.read_text(encoding="utf-8"), str(path))))
    assert found
    return found


PRODUCER, WORKER = modules("producer"), modules("worker")
ALL = [*PRODUCER, *WORKER]
ARRAY_MODULES.update(
    module.name
    for module in PRODUCER
    if module.name.startswith(("clipfleet/evaluation/", "clipfleet/search/", "clipfleet/training/"))
)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of all imports below, also by `import_module("x")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            for argument in node.args[:1]:
                # A computed name could be anything.
                yield str(argument.value).partition(".")[0] if isinstance(argument, ast.Constant) else "?"


def names_in(node: ast.AST | None) -> set[str]:
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)} if node else set()


def swallowing(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and function of each handler that catches everything and does not re-raise at its end."""
    owners = {child: function.name for function in functions(tree) for child in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and (node.type is None or names_in(node.type) & BROAD):
            last = node.body[-1]
            if not (isinstance(last, ast.Raise) and last.exc is None):
                yield node.lineno, owners.get(node, "")
        is_suppress = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress")
        if is_suppress and any(names_in(argument) & BROAD for argument in ast.iter_child_nodes(node)):
            yield node.lineno, owners.get(node, "")


def classes(tree: ast.AST) -> Iterator[ast.ClassDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def public_methods(kind: ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in kind.body:
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and not node.name.startswith("_"):
            yield node


EXPLAINED: dict[str, set[str]] = {}  # public methods with a docstring, by their class
for _module in ALL:
    for _kind in classes(_module.tree):
        EXPLAINED.setdefault(_kind.name, set()).update(
            node.name for node in public_methods(_kind) if ast.get_docstring(node)
        )


def unexplained(kind: ast.ClassDef, elsewhere: dict[str, set[str]]) -> list[str]:
    """Public methods without a docstring that neither a base nor "See `Protocol`" explains.

    A base that is not ours may explain anything.
    """
    said = re.findall(r"[Ss]ee `([\w.]+)`", ast.get_docstring(kind) or "")
    named = [*said, *(ast.unparse(base).partition("[")[0] for base in kind.bases)]
    models = [name.rpartition(".")[2] for name in named]
    if any(model not in elsewhere and model not in ("Protocol", "Generic") for model in models):
        return []
    known = {name for model in models for name in elsewhere.get(model, ())}
    bare = [node.name for node in public_methods(kind) if not ast.get_docstring(node)]
    return [name for name in bare if name not in known and not kind.name.startswith("_")]


@pytest.mark.parametrize("module", ALL, ids=str)
class TestEveryModule:
    def test_every_public_method_is_explained_here_or_by_its_protocol(self, module: Module) -> None:
        found = {kind.name: unexplained(kind, EXPLAINED) for kind in classes(module.tree)}

        assert {name: methods for name, methods in found.items() if methods} == {}

    def test_nothing_is_swallowed_but_at_the_task_boundary(self, module: Module) -> None:
        found = [
            (line, function)
            for line, function in swallowing(module.tree)
            if (module.name, function) not in MAY_SWALLOW
        ]

        assert found == []

    def test_it_has_a_docstring(self, module: Module) -> None:
        assert ast.get_docstring(module.tree)


@pytest.mark.parametrize("module", [*ALL, *modules("tests", "ops")], ids=str)
def test_no_function_is_long(module: Module) -> None:
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions(module.tree)}

    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_no_file_or_folder_has_a_vague_name() -> None:
    paths = [path for folder in ("producer", "worker", "tests", "ops") for path in (ROOT / folder).rglob("*")]
    words = {path: set(path.stem.lower().split("_")) for path in paths if "node_modules" not in path.parts}

    assert [str(path) for path, parts in words.items() if parts & VAGUE_NAMES] == []
    assert len(words) > 100


def test_exceptions_to_the_rule_on_swallowing_are_still_needed() -> None:
    by_name = {module.name: module for module in ALL}
    found = {(name, function) for name, _ in MAY_SWALLOW for _, function in swallowing(by_name[name].tree)}

    assert found == MAY_SWALLOW


@pytest.mark.parametrize("module", PRODUCER, ids=str)
class TestProducer:
    def test_it_never_imports_what_belongs_to_the_worker(self, module: Module) -> None:
        allowed = OF_THE_GATEWAY if module.name.startswith("clipfleet_gateway/") else set()
        assert set(imported(module.tree)) & (HEAVY | {"?", "clipfleet_worker"}) <= allowed

    def test_it_loads_without_numpy(self, module: Module) -> None:
        """The base install has no numpy: only functions and type checks import it, or a module that does."""
        if module.name in ARRAY_MODULES:
            return
        for statement in module.tree.body:
            only_types = isinstance(statement, ast.If) and "TYPE_CHECKING" in names_in(statement.test)
            is_code = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            assert only_types or is_code or "numpy" not in set(imported(statement))


def test_one_module_knows_open_clip() -> None:
    assert [str(module) for module in ALL if "open_clip" in set(imported(module.tree))] == [
        "clipfleet_worker/models/open_clip_models.py"
    ]


class TestTheChecksThemselves:
    """Each check finds a planted violation."""

    @pytest.mark.parametrize(
        ("code", "found"),
        [
            ("try:\n  x\nexcept:\n  pass", 1),
            ("try:\n  x\nexcept Exception:\n  log()", 1),
            ("try:\n  x\nexcept (ValueError, BaseException) as e:\n  raise ValueError from e", 1),
            ("try:\n  x\nexcept builtins.Exception if y else Exception:\n  pass", 1),
            ("with suppress(Exception):\n  x", 1),
            ("with contextlib.suppress(ValueError, BaseException):\n  x", 1),
            ("try:\n  x\nexcept BaseException:\n  undo()\n  raise", 0),
            ("try:\n  x\nexcept ValueError:\n  pass", 0),
            ("with suppress(OSError):\n  x", 0),
        ],
    )
    def test_what_swallows(self, code: str, found: int) -> None:
        assert len(list(swallowing(ast.parse(code)))) == found

    @pytest.mark.parametrize(
        ("code", "bare"),
        [
            ("class A:\n  def f(self): ...", ["f"]),
            ("class A:\n  'Of its own.'\n  def f(self): 'It is explained.'", []),
            ("class A:\n  'See `x.Model`.'\n  def f(self): ...", []),
            ("class A:\n  'See `x.Model`.'\n  def g(self): ...", ["g"]),
            ("class A(Model):\n  def f(self): ...", []),
            ("class A(Model):\n  async def g(self): ...", ["g"]),
            ("class A(Protocol):\n  def f(self): ...", ["f"]),
            ("class A(io.RawIOBase):\n  def f(self): ...", []),
            ("class _A:\n  def f(self): ...", []),
        ],
    )
    def test_what_is_not_explained(self, code: str, bare: list[str]) -> None:
        (kind,) = classes(ast.parse(code))

        assert unexplained(kind, {"Model": {"f"}, "A": set()}) == bare

    @pytest.mark.parametrize(
        "code",
        [
            "import torch",
            "import torch.nn as nn",
            "from torch.nn import Module",
            "def f():\n  from torch import nn",
            "importlib.import_module('torch.nn')",
            "if TYPE_CHECKING:\n  import torch",
        ],
    )
    def test_what_imports(self, code: str) -> None:
        assert set(imported(ast.parse(code))) == {"torch"}
