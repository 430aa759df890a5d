"""Commands that draw items to mark, choose thresholds by marks, and test them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands.following import EXIT_SOME_FAILED
from clipfleet.commands.marks.options import (
    MARKS,
    TARGET_PRECISION,
    Confidence,
    Jointly,
    Label,
    LabelsFile,
    Marked,
    MaxMiss,
    SampledFile,
    SetName,
    TargetPrecision,
    ToMark,
    WrittenLabels,
)
from clipfleet.commands.marks.verdicts import (
    certify_object,
    certify_sentences,
    threshold_object,
    threshold_table,
    what_does_not_count,
)
from clipfleet.commands.options import AsJson, JobOrOutput
from clipfleet.commands.results import row_reader
from clipfleet.contract.label_sets import Claim, Promise, Verdict
from clipfleet.errors import UsageError
from clipfleet.labels.extra import require_numpy
from clipfleet.labels.marks import Mark, Purpose
from clipfleet.terminal.console import print_table, say
from clipfleet.terminal.help import LABELS, OUTPUT
from clipfleet.wording import counted

if TYPE_CHECKING:
    from clipfleet.marking.matching import MatchedMarks
    from clipfleet.marking.scored_rows import ScoredRows
    from clipfleet.results.rows import RowReader

# Readers of rows and what needs numpy are imported in the functions: `--help` needs neither.

_TO_MARK = Path("to_mark.csv")


class DrawnFor(StrEnum):
    """The purposes that samples are drawn for."""

    FIT = Purpose.FIT.value
    CERTIFY = Purpose.CERTIFY.value


def sample(
    job: JobOrOutput,
    purpose: Annotated[
        DrawnFor,
        typer.Option(help="fit: to choose thresholds; certify: to test them", rich_help_panel=LABELS),
    ],
    label: Label = None,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="items per label", rich_help_panel=OUTPUT)
    ] = 60,
    labels: LabelsFile = None,
    marks: Marked = None,
    set_name: SetName = None,
    output: SampledFile = None,
) -> None:
    """Draw items to mark: fill in the column `verdict` with yes, no or skip."""
    require_numpy("marks")
    from clipfleet.marking import drawing, files
    from clipfleet.marking.matching import read_matched_marks
    from clipfleet.marking.scored_rows import asked_labels, thresholds_of

    if output is not None:
        files.require_unmarked(output)
    with _scored(job, set_name) as (reader, rows):
        label_set, where = thresholds_of(rows, labels)
        promised = list(label_set.promises) if purpose is DrawnFor.CERTIFY else []
        asked = asked_labels(label or promised, label_set, where)
        marked = read_matched_marks(reader, label_set, where, marks or [], asked)
        draws = [
            drawing.draw_for_fit(rows, one, count, marked)
            if purpose is DrawnFor.FIT
            else drawing.draw_for_certify(rows, one, count, marked, label_set)
            for one in asked
        ]
        found = drawing.rows_to_mark(reader, rows, draws, label_set)
        _say_what_saturates(rows, asked)
        text = files.to_mark_text(found, as_json=output is not None and output.suffix.lower() == ".jsonl")
    for draw in draws:
        if len(draw.positions) < count:
            say(f"{draw.label}: {counted(len(draw.positions), 'item')}; there are no more", style="yellow")
    if output is None:
        typer.echo(text, nl=False)
        return
    files.write_text(output, text)
    say(f"{counted(sum(len(draw.positions) for draw in draws), 'item')} to mark -> {output}")


def calibrate(
    job: JobOrOutput,
    output: WrittenLabels,
    marks: Annotated[list[Path] | None, MARKS] = None,
    target_precision: TargetPrecision = None,
    max_miss: MaxMiss = None,
    set_name: SetName = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="replace a file with certificates, or with another label set",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Choose a threshold per label by fit marks, of files or stored, and write the label set with them."""
    require_numpy("marks")
    from clipfleet.marking.calibration import calibrate as choose
    from clipfleet.marking.files import require_replaceable, write_calibrated

    promise = _promise(target_precision, max_miss)
    with _scored(job, set_name) as (reader, rows):
        require_replaceable(output, rows.label_set, overwrite)
        marked = _fit_marks(reader, rows, marks or ())
        found = choose(rows, marked, promise)
    write_calibrated(output, found.label_set)
    if as_json:
        chosen = [threshold_object(one) for one in found.labels]
        about = {"labels_file": str(output), "promise": promise.model_dump(mode="json"), "labels": chosen}
        typer.echo(json.dumps({**about, "slope": found.label_set.slope, **what_does_not_count(marked)}))
        return
    print_table(threshold_table(found.labels, promise))
    _say_what_does_not_count(marked)
    _say_what_saturates(rows, rows.label_set.labels)
    for one in found.labels:
        if one.problem:
            accepts = f"accepts {one.accepted:,} of {counted(one.rows, 'row')}"
            say(f"{one.label}: {one.problem}; its threshold {one.threshold:g} {accepts}", style="yellow")
    if few := [one.label for one in found.labels if 0 < one.marks < _FEW_FIT_MARKS]:
        least = (
            f"{len(few)} of {counted(len(found.labels), 'label')} with fewer than {_FEW_FIT_MARKS} fit marks"
        )
        say(f"more fit marks narrow the margins and lower thresholds: {least}")
    say(f"estimates from the fit marks, not proven: `clipfleet certify` tests them; label set -> {output}")


def certify(
    job: JobOrOutput,
    labels: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="label set with the thresholds; the looks are recorded in it",
            rich_help_panel=LABELS,
        ),
    ],
    marks: Annotated[list[Path] | None, MARKS] = None,
    label: Label = None,
    confidence: Confidence = 0.95,
    jointly: Jointly = False,
    to_mark: ToMark = _TO_MARK,
    set_name: SetName = None,
    as_json: AsJson = False,
) -> None:
    """Test the thresholds of a label set with certify marks; without marks, print the certificates."""
    require_numpy("marks")
    from clipfleet.marking.certification import Certification, Terms
    from clipfleet.marking.drawing import write_to_mark
    from clipfleet.marking.files import record_certificates, require_unmarked, require_yaml
    from clipfleet.marking.matching import read_matched_marks
    from clipfleet.marking.scored_rows import asked_labels, thresholds_of

    if not 0 < confidence < 1:
        raise UsageError(f"--confidence {confidence:g} is not between 0 and 1")
    if marks:
        require_yaml(labels)
        require_unmarked(to_mark)
    with _scored(job, set_name, finished=bool(marks)) as (reader, rows):
        label_set, where = thresholds_of(rows, str(labels))
        asked = asked_labels(label or list(label_set.promises), label_set, where)
        marked = read_matched_marks(reader, label_set, where, marks or [], asked)
        test = Certification(rows, label_set, Terms(confidence, len(asked) if jointly else 1), where)
        results = [test.run(one, marked) for one in asked]
        recorded = test.recorded(results, datetime.now(UTC)) if marks else label_set
        if recorded != label_set:
            recorded = record_certificates(labels, label_set, recorded)
        draws = [one.to_mark for one in results if one.verdict is Verdict.NOT_YET]
        left = write_to_mark(reader, rows, draws, label_set, to_mark) if marks else 0
    now = Certification(rows, recorded, test.terms, where)
    if marks and not any(marked.of(Purpose.CERTIFY, one) for one in asked):
        say("the files hold no certify marks of these labels: fit marks test nothing", style="yellow")
    if as_json:
        found = certify_object(now, results, marked)
        typer.echo(json.dumps({**found, "to_mark": str(to_mark) if left else None}))
    else:
        for sentence in certify_sentences(now, results):
            typer.echo(sentence)
        _say_what_does_not_count(marked)
        if without := [one for one in label_set.labels if not (label or one in asked)]:
            say(f"not tested, for they have no promise: {', '.join(without)}", style="yellow")
        if left:
            say(f"{counted(left, 'item')} to mark -> {to_mark}")
    if any(one.verdict is not Verdict.CERTIFIED for one in results):
        raise typer.Exit(EXIT_SOME_FAILED)


def _fit_marks(reader: RowReader, rows: ScoredRows, files: Sequence[Path]) -> MatchedMarks:
    """The marks of files, else those that are stored beside the rows."""
    from clipfleet.marking.matching import match_stored_marks, read_matched_marks
    from clipfleet.marking.stored import stored_marks

    if files:
        return read_matched_marks(reader, rows.label_set, rows.uri, files)
    stored = stored_marks(reader)
    if not stored:
        raise UsageError(
            f"{rows.uri}: no marks are stored there: name files with `marks=`, or store them with "
            "`clipfleet marks import FILE`"
        )
    return match_stored_marks(reader, rows.label_set, stored)


@contextmanager
def _scored(
    job: str, set_name: str | None, *, finished: bool = False
) -> Iterator[tuple[RowReader, ScoredRows]]:
    """Read all scores of a job; `finished`: refuse one whose rows may still change."""
    from clipfleet.marking.scored_rows import read_scored_rows

    with row_reader(job) as reader:
        is_finished = reader.finished_at() is not None  # asked first: it may finish while rows are read
        rows = read_scored_rows(reader, set_name)
        if finished and not is_finished:
            raise UsageError(
                f"{rows.uri}: rows may still change, for the job has not finished: certify when it has"
            )
        if not is_finished:
            say("the job has not finished: rows may be missing, and others will follow", style="yellow")
        yield reader, rows


def _promise(target_precision: float | None, max_miss: float | None) -> Promise:
    if target_precision is not None and max_miss is not None:
        raise UsageError("give one of --target-precision and --max-miss")
    option = "--target-precision" if max_miss is None else "--max-miss"
    value = max_miss if max_miss is not None else target_precision
    value = TARGET_PRECISION if value is None else value
    if not 0 < value < 1:
        raise UsageError(f"{option} {value:g} is not between 0 and 1")
    return Promise(claim=Claim.PRECISION if max_miss is None else Claim.MISS, value=value)


def _say_what_does_not_count(marked: MatchedMarks) -> None:
    say_void(marked.void, marked.unanswered)
    if marked.disagreements:
        items = ", ".join(f"{label} of item {index}" for label, index in marked.disagreements[:_SHOWN])
        say(f"people disagree on {counted(len(marked.disagreements), 'verdict')}: {items}", style="yellow")


def say_void(void: Sequence[Mark], unanswered: int) -> None:
    """Warn of marks whose image has changed, and of annotations that are none."""
    if void:
        where = ", ".join(mark.where for mark in void[:_SHOWN])
        say(
            f"void, for the image has changed or is gone: {counted(len(void), 'mark')} ({where})",
            style="yellow",
        )
    if unanswered:
        what = counted(unanswered, "annotation")
        say(f"no marks, for nothing is chosen: {what} of Label Studio", style="yellow")


def _say_what_saturates(rows: ScoredRows, labels: Sequence[str]) -> None:
    count = len(rows.item_index)
    found = {label: rows.saturated(label) for label in labels}
    many = [f"{label} ({number:,})" for label, number in found.items() if number > _MANY_SATURATED * count]
    if many:
        more = f" and {len(many) - _SHOWN:,} more labels" if len(many) > _SHOWN else ""
        say(
            f"no threshold separates rows that share the largest score, as many of {count:,} rows do: "
            f"{', '.join(many[:_SHOWN])}{more}; classify again with `slope: 0.2` in the label set, and "
            "`intercept: 0` for each label",
            style="yellow",
        )


_MANY_SATURATED = 0.01
_FEW_FIT_MARKS = 120  # with 60, hard labels may keep less than half of the recall that is there
_SHOWN = 10  # of a list in a message
