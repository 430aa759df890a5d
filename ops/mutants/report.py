"""What came of the mutants: one by one, by script, and all those that nothing has found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from ops.mutants.places import Mutant

_MOST_SHOWN = 60  # characters of a change, and of what a test says


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one mutant."""

    tree: str
    script: str
    digest: str
    start: int
    kind: str
    line: int
    change: str
    code: str
    killed_by: str  # the test that failed; empty: it survived
    failure: str
    tests: int  # that run the place
    seconds: float

    @property
    def key(self) -> tuple[str, str, str, int, str, str]:
        """Identity of the mutant; the digest of the script keeps results of other texts apart."""
        return self.tree, self.script, self.digest, self.start, self.kind, self.change


def result_of(tree: str, mutant: Mutant, failed: Mapping[str, str], tests: int, seconds: float) -> Result:
    """Of a mutant, and what has failed with it."""
    test, failure = next(iter(failed.items()), ("", ""))
    return Result(
        tree, mutant.script, mutant.digest, mutant.start, mutant.kind, mutant.line, mutant.change,
        mutant.code, test, failure[:200], tests, round(seconds, 1),
    )  # fmt: skip


def line_of(result: Result) -> str:
    """One mutant, for people."""
    where = f"{result.script}.lua:{result.line}: {_short(result.change)}"
    if result.killed_by:
        came = f"killed by {result.killed_by.rpartition('/')[2]}: {_short(result.failure)}"
    else:
        came = f"survived {result.tests} tests" if result.tests else "survived, no test runs it"
    return (
        f"{escape(where)}: {escape(came) if result.killed_by else f'[red]{came}[/]'} ({result.seconds:.0f} s)"
    )


def summary(results: Sequence[Result]) -> Group:
    """All results: the counts of each script, the survivors, and the total."""
    survivors = [line_of(one) + f"\n    {escape(one.code)}" for one in results if not one.killed_by]
    return Group(_table(results), *survivors, f"{_killed(results)} of {len(results)} killed")


def _table(results: Sequence[Result]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("script", no_wrap=True)
    for name in ("killed", "of", "%"):
        table.add_column(name, justify="right")
    for script, own in _by_script(results):
        killed = _killed(own)
        table.add_row(script, f"{killed}", f"{len(own)}", f"{100 * killed / len(own):.0f}")
    return table


def _by_script(results: Sequence[Result]) -> Iterator[tuple[str, Sequence[Result]]]:
    for script in sorted({one.script for one in results}):
        yield script, [one for one in results if one.script == script]


def _killed(results: Sequence[Result]) -> int:
    return sum(bool(one.killed_by) for one in results)


def _short(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= _MOST_SHOWN:
        return line
    head, tail = _MOST_SHOWN // 2, _MOST_SHOWN - _MOST_SHOWN // 2
    return f"{line[:head]} ... {line[-tail:]}"
