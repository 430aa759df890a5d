"""A suite in a few lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clipfleet.evaluation.datacomp.sets import MAIN_METRIC
from clipfleet.evaluation.datacomp.suite import OURS, Average, Suite
from clipfleet.wording import counted


def suite_lines(found: Suite) -> Iterator[str]:
    """The main metrics with their 95 % intervals, the averages, and the sets that failed or are missing."""
    width = max([len(line["dataset"]) for line in found.lines] + [len(one.name) for one in found.averages])
    for line in found.lines:
        yield f"{line['dataset']:<{width}}  {_main(line)}{_items(line)}"
    yield ""
    for one in found.averages:
        yield f"{one.name:<{width}}  {_average(one)}"
    yield ""
    for name, reason in found.failed.items():
        yield f"failed: {name}: {reason}"
    if found.missing:
        names = ", ".join(task.name for task in found.missing)
        yield f"not there: {counted(len(found.missing), 'set')}: {names}"
    yield f"results in {found.results}"


def _main(line: Mapping[str, Any]) -> str:
    value, interval = line["metrics"][MAIN_METRIC], line[OURS]["interval"]
    if value is None:
        return "-       no main metric"
    shown = "" if interval is None else f"  [{interval[0]:.4f}, {interval[1]:.4f}]"
    return f"{value:.4f}  {line[OURS]['main_metric']}{shown}"


def _items(line: Mapping[str, Any]) -> str:
    """A set that is not whole is not the set that others measured."""
    about = line[OURS]
    whole = about["items"] == about["size"]
    return "" if whole else f", {about['items']:,} of {about['size']:,} items"


def _average(one: Average) -> str:
    if one.value is None:
        return "-       none of its sets is there"
    return f"{one.value:.4f}" + ("" if one.sets == one.of else f"  of {one.sets} of its {one.of} sets")
