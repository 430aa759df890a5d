"""Explains in one line why a command takes one source, where a shell has expanded a glob into many names."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from clipfleet.errors import UsageError
from clipfleet.terminal.help import Command

_ONE_LIST = "submit them one by one, or put the texts into one .txt"
_SHOWN = 3  # unexpected arguments in a message


class OneSourceCommand(Command):
    """A command whose one argument is `source`."""

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse like any command, but with messages of bounded length about further arguments."""
        ctx.allow_extra_args = True
        super().parse_args(ctx, args)
        extra = list(ctx.args)
        if extra and not ctx.resilient_parsing:
            name = next(one.metavar for one in self.params if one.name == "source")
            if explained := _explained([ctx.params["source"], *extra]):
                what, way_out = explained
                way_out = _ONE_LIST if name == "FILE" else way_out
                raise UsageError(f"{len(extra) + 1:,} {what} were given, {name} is one: {way_out}")
            rest = len(extra) - _SHOWN
            shown = " ".join(extra[:_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
            ctx.fail(f"Got unexpected extra argument{'' if len(extra) == 1 else 's'} ({shown})")
        return extra


def _explained(given: Sequence[str]) -> tuple[str, str] | None:
    """What these sources are, and the way out; None if they are not several files or URLs."""
    from clipfleet.sources.lists.formats import list_opener  # imports pyarrow
    from clipfleet.sources.uris import has_scheme

    if all(map(has_scheme, given)):
        return "URLs", "list them in a .txt file, one per line"
    if not all(map(os.path.exists, given)):
        return None
    if all(list_opener(one) for one in given):
        return "lists", "submit them one by one"
    if pattern := _pattern_of(given):
        return "files", f"put the glob in quotes, {shlex.quote(pattern)}"
    return ("files", "list them in a .txt file, one per line") if all(map(os.path.isfile, given)) else None


def _pattern_of(names: Sequence[str]) -> str | None:
    """The shortest glob that matches these names and no others; None if there is none, or one is repeated."""
    if len({*names}) < len(names):
        return None
    split = [name.split("/") for name in names]
    if len({*map(len, split)}) > 1:
        return None
    *folders, last = zip(*split, strict=True)
    above = ["*" if len({*parts}) > 1 else glob.escape(parts[0]) for parts in folders]
    endings = {Path(name).suffix for name in last}
    end = glob.escape(endings.pop()) if len(endings) == 1 else ""
    beginning = os.path.commonprefix(last)  # noqa: RUF071 - of names, not of paths
    for start in ("", glob.escape(beginning)):
        pattern = "/".join([*above, f"{start}*{end}"])
        if {*glob.glob(pattern)} == {*names}:  # noqa: PTH207 - Path would drop a leading `./`
            return pattern
    return None
