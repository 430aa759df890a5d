"""One word, one thing: retired words stay out of names, messages, help and pages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import typer

from clipfleet import commands as producer_cli
from clipfleet_gateway import commands as gateway_cli
from clipfleet_worker.cli import commands as worker_cli
from tests.support.documents import ROOT, documents

NAMES, TEXTS = "names", "texts"


@dataclass(frozen=True)
class Retired:
    words: str  # a pattern for whole words, in lower case
    instead: str
    where: tuple[str, ...] = (NAMES, TEXTS)
    but: tuple[str, ...] = ()  # names and whole strings with another meaning, or of other programs

    def word_in(self, name_or_text: str) -> str:
        """The retired word that it holds, with the words around it; or nothing."""
        if name_or_text in self.but:
            return ""
        found = re.search(rf"(?:\S+ ){{0,4}}\b({self.words})\b(?: \S+){{0,4}}", spoken(name_or_text))
        return f"'{found[1]}' in {found[0]!r}" if found else ""


RETIRED = (
    Retired("pictures?", "image, or item where a row is meant", but=("picture",)),
    Retired("processors?", "CPU", but=("processor", "image_processor", "processor_config.json")),
    # Putting items beside the output keeps the word, and so does what the ledger answers to it.
    Retired("stages?(?! answer)", "step, unless items are put beside the output", but=("stage", "_stage")),
    Retired("(?:gives?|gave|given|giving|hand|hands|handed|handing) back", "release"),
    Retired("leavers?|leave|leaving", "drain", where=(NAMES,)),
    Retired("tells?|told|telling", "report or record", where=(TEXTS,)),
    Retired("somebody|nobody|whoever|whatever", "who or what it is: the worker, the caller, the lease"),
    Retired("likewise", "the thing itself"),
    Retired("(?:bear|bears|bore|bearing) company", "what happens"),
)


def spoken(name_or_text: str) -> str:
    """`give_back`, `give-back`, `GiveBack` and text over several lines, as words in lower case."""
    return re.sub(r"[\s_-]+", " ", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name_or_text)).lower()


def named(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of all that code defines: functions, classes, arguments, attributes, variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr


def written(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of all strings that are no docstrings, those of f-strings included."""
    explaining = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in explaining:
            yield node.lineno, node.value


def named_in_lua(script: str) -> Iterator[tuple[int, str]]:
    """Line and name of all that a script defines."""
    for number, line in enumerate(script.splitlines(), 1):
        for names in re.findall(r"\blocal (?:function )?([\w, ]+)", line.partition("--")[0]):
            yield from ((number, name) for name in re.findall(r"\w+", names))


def help_texts(command: Any) -> Iterator[str]:
    """What `--help` says of a command, its options, and the commands in it."""
    yield from filter(None, [command.help, *(getattr(one, "help", None) for one in command.params)])
    for inner in getattr(command, "commands", {}).values():
        yield from help_texts(inner)


def retired_in(kind: str, found: Iterable[tuple[int, str]], where: object) -> list[str]:
    return [
        f"{where}:{line}: {word}: say {retired.instead}"
        for line, text in found
        for retired in RETIRED
        if kind in retired.where and (word := retired.word_in(text))
    ]


CODE = sorted(path for folder in ("producer", "worker") for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("producer/**/*.lua"))


def test_code_uses_the_words_of_the_house() -> None:
    found = []
    for path in CODE:
        where, tree = path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))
        places = ((0, name) for name in where.with_suffix("").parts)
        found += retired_in(NAMES, [*places, *named(tree)], where)
        found += retired_in(TEXTS, written(tree), where)
    for path in SCRIPTS:
        found += retired_in(NAMES, [(0, path.stem), *named_in_lua(path.read_text())], path.relative_to(ROOT))

    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "app",
    [producer_cli.app, gateway_cli.app, worker_cli.app],
    ids=["clipfleet", "clipfleet-gateway", "clipfleet-worker"],
)
def test_help_uses_the_words_of_the_house(app: typer.Typer) -> None:
    texts = list(help_texts(typer.main.get_command(app)))
    found = retired_in(TEXTS, enumerate(texts), "help")

    assert len(texts) > 10
    assert not found, "\n".join(found)


def test_pages_use_the_words_of_the_house() -> None:
    found = []
    for page in (*documents(), ROOT / "CHANGELOG.md"):
        text = page.read_text(encoding="utf-8")
        paragraphs = re.finditer(r"(?:.+\n?)+", text)
        spots = ((text.count("\n", 0, one.start()) + 1, one[0]) for one in paragraphs)
        found += retired_in(TEXTS, spots, page.relative_to(ROOT))

    assert not found, "\n".join(found)


def test_what_is_allowed_is_still_there() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in CODE]
    found = {text for tree in trees for _, text in (*named(tree), *written(tree))}

    assert {text for retired in RETIRED for text in retired.but} - found == set()


class TestTheChecksThemselves:
    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("def give_back(): ...", ["give back"]),
            ("class GivesBack: ...", ["gives back"]),
            ("def f(of_picture): ...", ["picture"]),
            ("f = lambda *, stages: 1", ["stages"]),
            ("self._stage_seconds = 1", ["stage"]),
            ("for processor_count in x: pass", ["processor"]),
            ("class Leaver: ...", ["leaver"]),
            ("why_nobody_works: str", ["nobody"]),
            ("def _stage(stager, staged): ...", []),
            ("x = found.stages + f(processors=1)", []),
            ("def left_over(leaves): ...", []),
            ("def tell(): ...", []),
        ],
    )
    def test_what_is_a_retired_name(self, code: str, words: list[str]) -> None:
        assert self._words(retired_in(NAMES, named(ast.parse(code)), "x.py")) == words

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("log.warning('chunk %s: handed back', x)", ["handed back"]),
            ("raise UsageError(f'{path}: no picture')", ["picture"]),
            ("Option(help='what\\ntells that Somebody waits')", ["tells", "somebody"]),
            ("extra={'action': 'give-back'}", ["give back"]),
            ("'Nobody.'\ndef f():\n  'Whoever.'", []),
            ("open('preprocessor_config.json'), read('image_processor')", []),
            ("help('leave it out'), print('intellect')", []),
        ],
    )
    def test_what_is_a_retired_text(self, code: str, words: list[str]) -> None:
        assert self._words(retired_in(TEXTS, written(ast.parse(code)), "x.py")) == words

    def test_what_a_script_defines(self) -> None:
        script = "local function give_back(job) -- local word\n  local due, stages = 1, nobody"

        assert list(named_in_lua(script)) == [(1, "give_back"), (2, "due"), (2, "stages")]

    def test_what_help_is_looked_at(self) -> None:
        app, inner = typer.Typer(help="one"), typer.Typer(help="two")
        app.add_typer(inner, name="inner")

        @inner.command()
        def first(at: str = typer.Option(help="three")) -> None:
            """four"""

        inner.command("second", help="five")(first)

        assert {"one", "two", "three", "four", "five"} <= set(help_texts(typer.main.get_command(app)))

    @staticmethod
    def _words(lines: list[str]) -> list[str]:
        return [line.split("'")[1] for line in lines]
