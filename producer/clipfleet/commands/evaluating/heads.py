"""Which head `evaluate` takes, and what is evaluated with or without one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipfleet.commands.naming import is_file
from clipfleet.errors import UsageError

if TYPE_CHECKING:
    from clipfleet.contract.label_sets import LabelSet
    from clipfleet.evaluation.on_roots import EvaluationTask
    from clipfleet.evaluation.outcome import Evaluation
    from clipfleet.evaluation.vectors import Embedder
    from clipfleet.heads.files import HeadFile
    from clipfleet.results.rows import RowReader


@dataclass(frozen=True, slots=True)
class ChosenHeads:
    """The heads of an evaluation."""

    own: HeadFile | str | None  # its file, or the name of a head of a job
    other: HeadFile | None  # that `--compare` names
    compared: str | None  # what it names else: a model, a job or an output


def chosen_heads(head: str | None, compare: str | None) -> ChosenHeads:
    """Read the heads that `--head` and `--compare` name."""
    from clipfleet.heads.files import read_head

    if head is None and compare is not None and _is_head_file(compare):
        raise UsageError(f"--compare {compare}: the file of a head goes with --head")
    if head is None:
        return ChosenHeads(None, None, compare)
    own = read_head(Path(head)) if _is_head_file(head) or is_file(head) else head
    if compare is not None and _is_head_file(compare):
        return ChosenHeads(own, read_head(Path(compare)), None)
    return ChosenHeads(own, None, compare)


def _is_head_file(text: str) -> bool:
    return text.endswith(".safetensors")


def evaluate_root(
    place: tuple[str, str],
    embedder: Embedder,
    head: HeadFile | str | None,
    task: EvaluationTask,
    recalls: tuple[int, ...],
) -> Evaluation:
    """Evaluate a model on a split of a root, zero-shot or with a head; `place` is root and split."""
    from clipfleet.evaluation import on_roots
    from clipfleet.evaluation.on_heads import evaluate_head_root
    from clipfleet.evaluation.roots import read_root

    if head is None:
        return on_roots.evaluate_root(read_root(*place), embedder, task=task, recalls=recalls)
    if isinstance(head, str):
        raise UsageError(
            f"--head {head}: no such file; with --truth-column it may be the name of a head of a job"
        )
    return evaluate_head_root(read_root(*place), embedder, head, recalls)


def evaluate_output(
    reader: RowReader,
    column: str,
    label_set: LabelSet | None,
    head: HeadFile | str | None,
    embedder: Embedder,
) -> Evaluation:
    """Evaluate rows, or vectors with labels or a head; without vectors, the columns of a head of the job."""
    from clipfleet.evaluation.on_heads import evaluate_head, evaluate_head_rows
    from clipfleet.evaluation.on_rows import evaluate_rows
    from clipfleet.evaluation.on_vectors import evaluate_vectors

    if isinstance(head, str):
        return evaluate_head_rows(reader, column, head)
    if head is not None:
        job = reader.job()
        own = [one.name for one in job.heads if one.sha256 == head.of_job.sha256] if job is not None else []
        if job is not None and own and not job.keeps_embeddings:
            return evaluate_head_rows(reader, column, own[0])
        return evaluate_head(reader, column, head)
    if label_set is None:
        return evaluate_rows(reader, column)
    return evaluate_vectors(reader, column, label_set, embedder)
