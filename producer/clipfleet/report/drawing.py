"""Whether samples to mark can be drawn for a label set, and why not. Imports numpy only where it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from clipfleet.errors import ClipfleetError
from clipfleet.marking.matching import MatchedMarks
from clipfleet.report.answers import Answers
from clipfleet.results.rows import RowReader

if TYPE_CHECKING:
    from clipfleet.report.to_mark import Drawn

NO_LABELS = "The rows have no label set: there is nothing to mark."
NO_THRESHOLDS = (
    "The scores are a softmax, which has no thresholds. Classify with a label set of kind multi, or one that "
    "may have no label, to get thresholds that marks can choose and certify."
)
NO_NUMPY = "Samples to mark need numpy: pip install 'clipfleet[analysis]', then write the report again."
NOT_FINISHED = "Samples to mark are drawn once the job has finished: rows may still change."


@dataclass(frozen=True, slots=True)
class Drawing:
    """The samples to mark, or why there are none."""

    drawn: Drawn | None = None
    reason: str = ""

    @property
    def indexes(self) -> set[int]:
        """The items to mark."""
        return set() if self.drawn is None else self.drawn.indexes


def drawn_for(
    reader: RowReader,
    answers: Answers | None,
    marked: MatchedMarks | None,
    labels: Sequence[str],
    count: int,
    *,
    labels_file: str | None,
    is_finished: bool,
    is_asked: bool,
) -> Drawing:
    """Draw the samples of a label set.

    Args:
        reader: of the rows.
        answers: the label set; None: there is none.
        marked: the marks so far.
        labels: to mark; none: all.
        count: items of a fit sample.
        labels_file: label set with the thresholds; None: that of the rows.
        is_finished: whether the rows stay as they are.
        is_asked: whether the user asks for samples: else what prevents them is said in the page.

    Raises:
        UsageError: see `draw`; or a label is unknown.
    """
    if answers is None:
        return Drawing(reason=NO_LABELS)
    if not answers.thresholds:
        return Drawing(reason=NO_THRESHOLDS)
    if find_spec("numpy") is None:
        return Drawing(reason=NO_NUMPY)
    if not is_finished:
        return Drawing(reason=NOT_FINISHED)
    from clipfleet.marking.scored_rows import asked_labels, read_scored_rows, thresholds_of
    from clipfleet.report.to_mark import certification_of, draw

    try:
        rows = read_scored_rows(reader, answers.name)
        label_set, where = thresholds_of(rows, labels_file)
        asked = asked_labels(labels, label_set, where)
        found = draw(certification_of(rows, label_set, where), asked, marked or MatchedMarks({}), count)
    except ClipfleetError as error:
        if is_asked:
            raise
        return Drawing(reason=str(error))
    return Drawing(found)
