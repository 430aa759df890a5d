"""DataComp's suite on the sets that are there, and the file of its results.

`eval_results.jsonl` has a line for each measured set, as DataComp's `evaluate.py` writes it:
`{"key", "dataset", "metrics": {..., "main_metric"}}`, and `clipfleet`: model, options and content that it is
about. A set whose line is about the same model, options and content is not measured again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from clipfleet.contract.label_sets import short_hash
from clipfleet.errors import OutputConflictError, OutputUnavailableError, SourceError, UsageError
from clipfleet.evaluation.datacomp.sets import MAIN_METRIC, SetScore, measure_set
from clipfleet.evaluation.datacomp.tasks import GROUPS, TASKS, Task
from clipfleet.evaluation.roots import Root, has_split, read_root, root_uri
from clipfleet.evaluation.vectors import DEFAULT_FOLDER, Embedder, EmbeddingError
from clipfleet.s3.client import SCHEME

RESULTS = "eval_results.jsonl"
OURS = "clipfleet"

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Average:
    """Mean of the main metrics of a group of sets."""

    name: str
    value: float | None
    sets: int  # that it is the mean of
    of: int  # that the group has


@dataclass(frozen=True, slots=True)
class Suite:
    """Results of a suite, in the order of its tasks."""

    results: Path
    lines: tuple[Mapping[str, Any], ...]  # as in the file
    failed: Mapping[str, str]  # reason, by name of the set
    missing: tuple[Task, ...]
    averages: tuple[Average, ...]

    def document(self) -> dict[str, Any]:
        """Everything as one JSON object."""
        return {
            "results": str(self.results),
            "sets": list(self.lines),
            "failed": dict(self.failed),
            "missing": [task.name for task in self.missing],
            "averages": [asdict(one) for one in self.averages],
        }


def run_suite(root: str, split: str, embedder: Embedder, results: Path, report: Report) -> Suite:
    """Evaluate a model on those sets of DataComp's suite that are below `root`.

    A set that is damaged or does not fit its task, or whose job failed, is reported; all others still run.
    Idempotent: what the results file has of the same model, options and content is taken from there, unless
    images failed: they are retried.

    Args:
        root: folder or S3 prefix of the sets' folders, see `Task.folders`.
        split: of each set.
        embedder: the model.
        results: the results file; made if it does not exist, replaced after each set.
        report: receives a line per set.

    Raises:
        SourceError: none of the sets is there.
        OutputConflictError: the results file is about another model or other options.
        WorldError: Redis or an output is unavailable.
    """
    identity = _identity(embedder, split)
    lines = _read(results, identity)
    found = {task: uri for task in TASKS if (uri := _folder(root, split, task)) is not None}
    if not found:
        raise SourceError(
            f"{root}: has none of the sets of DataComp's suite, such as {next(TASKS[0].folders())}/{split}"
        )
    failed: dict[str, str] = {}
    for task, uri in found.items():
        try:
            line = _measured(task, read_root(uri, split), embedder, identity, lines.get(task.key), report)
        except (UsageError, EmbeddingError) as error:
            failed[task.name] = str(error)
            report(f"{task.name}: failed: {error}")
            if lines.pop(task.key, None) is not None:
                _write(results, lines.values())
            continue
        if line is not lines.get(task.key):
            _require_same_model(results, lines.values(), line)
            lines[task.key] = line
            _write(results, lines.values())
    missing = tuple(task for task in TASKS if task not in found)
    ordered = [lines[task.key] for task in found if task.key in lines]
    return Suite(results, tuple(ordered), failed, missing, averages(ordered))


def averages(lines: Sequence[Mapping[str, Any]]) -> tuple[Average, ...]:
    """Means of the main metrics of DataComp's groups, each over those of its sets that have a line."""
    main = {line["dataset"]: line["metrics"][MAIN_METRIC] for line in lines}
    found = []
    for name, members in GROUPS.items():
        values = [value for dataset, value in main.items() if dataset in members and value is not None]
        found.append(Average(name, sum(values) / len(values) if values else None, len(values), len(members)))
    return tuple(found)


def results_path(place: str, output: str | None, embedder: Embedder, split: str) -> Path:
    """Where the results are: in the folder `output`, else in the cache in a folder of the same options.

    If the vectors are kept in S3, the results are in such a folder here.
    """
    is_remote = place.startswith(SCHEME)
    folder = Path(DEFAULT_FOLDER if is_remote else place).expanduser()
    if output is None or is_remote:
        folder /= f"datacomp-{short_hash(_identity(embedder, split))}"
    return folder / RESULTS


def _identity(embedder: Embedder, split: str) -> dict[str, str]:
    return {**embedder.options.identity(), "split": split}


def _folder(root: str, split: str, task: Task) -> str | None:
    folders = (f"{root_uri(root)}/{name}" for name in task.folders())
    return next((uri for uri in folders if has_split(uri, split)), None)


def _measured(
    task: Task,
    root: Root,
    embedder: Embedder,
    identity: Mapping[str, str],
    before: Mapping[str, Any] | None,
    report: Report,
) -> Mapping[str, Any]:
    """The line of a set: the one from before if it is about the same content, and no image failed."""
    content = short_hash([root.state, root.description()])
    if before is not None and before[OURS]["content"] == content and not before[OURS]["failed"]:
        report(f"{task.name}: {_shown(before)}, from an earlier run")
        return before
    score = measure_set(task, root, embedder)
    line = _line(task, score, {**identity, "root": root.uri, "content": content})
    report(f"{task.name}: {_shown(line)}")
    return line


def _line(task: Task, score: SetScore, about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "key": task.key, "dataset": task.name, "metrics": score.metrics,
        OURS: {
            **about, "main_metric": task.main_metric,
            "interval": score.interval and list(score.interval), "items": score.items, "failed": score.failed,
            "size": task.size, "model_fingerprint": score.model_fingerprint,
        },
    }  # fmt: skip


def _shown(line: Mapping[str, Any]) -> str:
    value, name = line["metrics"][MAIN_METRIC], line[OURS]["main_metric"]
    return "has no main metric" if value is None else f"{name} {value:.4f}"


def _require_same_model(results: Path, lines: Iterable[Mapping[str, Any]], new: Mapping[str, Any]) -> None:
    """Weights may be replaced under the same name between two runs."""
    fingerprint = new[OURS]["model_fingerprint"]
    for line in lines:
        if line["key"] != new["key"] and line[OURS]["model_fingerprint"] != fingerprint:
            raise OutputConflictError(
                f"{results}: {line['dataset']} was measured with other weights of {new[OURS]['model']}, of "
                f"fingerprint {line[OURS]['model_fingerprint']}, not {fingerprint}; name another `output=`"
            )


def _read(results: Path, identity: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    try:
        text = results.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{results}: cannot be read: {error}; name another `output=`") from error
    lines: dict[str, Mapping[str, Any]] = {}
    for number, written in enumerate(text.splitlines(), 1):
        try:
            line = json.loads(written)
            key, about = line["key"], line[OURS]
            found = {name: about[name] for name in identity}
        except (ValueError, KeyError, TypeError):
            raise OutputConflictError(
                f"{results}, line {number}: not written by clipfleet; name another `output=`"
            ) from None
        if found != identity:
            wrong = next(name for name in identity if found[name] != identity[name])
            raise OutputConflictError(
                f"{results}: is about {wrong} {found[wrong]}, not {identity[wrong]}; name another `output=`"
            )
        lines[key] = line
    return lines


def _write(results: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file in one step, so that a kill leaves the old one or the new one."""
    try:
        results.parent.mkdir(parents=True, exist_ok=True)
        # Of its own name: another run may write at the same time.
        with NamedTemporaryFile("w", dir=results.parent, prefix=f".{RESULTS}.", delete=False) as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        scratch = Path(file.name)
        scratch.chmod(0o644)
        scratch.replace(results)
    except OSError as error:
        raise OutputUnavailableError(f"{results}: cannot be written: {error.strerror}") from error
