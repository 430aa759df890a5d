"""What a head is fitted on: embeddings with their labels, wherever they come from. Reads nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from clipfleet.contract.heads import HeadKind
from clipfleet.contract.label_sets import DEFAULT_TEMPLATE
from clipfleet.errors import UsageError
from clipfleet.evaluation.truth import data_hash
from clipfleet.evaluation.vectors import ModelOptions, VectorOrigin
from clipfleet.heads.cross_validation import LEAST_ITEMS
from clipfleet.wording import counted

Array = np.ndarray
_SHOWN = 5  # labels in a message


@dataclass(frozen=True, slots=True)
class Samples:
    """Items with a vector and a truth."""

    features: Array  # float32 (items, d), of length 1
    truth: Array  # int64 (items,), or bool (items, labels) where an item may show several labels
    known: Array | None  # bool (items, labels) of the latter: where the truth is known
    labels: tuple[str, ...]
    ids: tuple[str, ...]  # of the items
    images: VectorOrigin  # of the features
    options: ModelOptions  # of the model that made them
    source: str  # for people
    # Of the prompts of a head that begins at the labels; empty: not known, see `require_templates`.
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    # Float64 (items, labels), 0 where the truth is not known: how many items this one stands for.
    weights: Array | None = None  # None: all count the same
    groups: Array | None = None  # int64 (items,): the same number for equal images; None: all differ
    notes: tuple[str, ...] = ()  # what is left out

    @property
    def kind(self) -> HeadKind:
        """Of the head that is fitted on them."""
        return HeadKind.CLASSIFY if self.known is None else HeadKind.MULTILABEL

    @property
    def shown(self) -> Array:
        """Items that show each label, int64 (labels,)."""
        if self.known is None:
            return np.bincount(self.truth, minlength=len(self.labels))
        counts: Array = (self.truth & self.known).sum(axis=0)
        return counts

    @property
    def not_shown(self) -> Array:
        """Items that are known not to show each label, int64 (labels,)."""
        if self.known is None:
            return len(self.truth) - self.shown
        counts: Array = (~self.truth & self.known).sum(axis=0)
        return counts

    @property
    def data_sha256(self) -> str:
        """Hash of the items and of what is known of them; the same data has the same hash."""
        return data_hash((item_id, self._answers(number)) for number, item_id in enumerate(self.ids))

    def _answers(self, number: int) -> object:
        """What is known of an item: its label, or each label with whether it shows it."""
        if self.known is None:
            return self.labels[self.truth[number]]
        marked = np.flatnonzero(self.known[number])
        return [[self.labels[label], bool(self.truth[number, label])] for label in marked]

    def without_rare(self, least: int) -> Samples:
        """The same without the labels that fewer items show, or do not show, and without their items."""
        enough = np.logical_and(self.shown >= least, self.not_shown >= least)
        if enough.all():
            return self
        kept = np.flatnonzero(enough)
        names = ", ".join(self.labels[label] for label in np.flatnonzero(~enough)[:_SHOWN])
        note = f"left out: {counted(int((~enough).sum()), 'label')} with fewer than {least} items ({names}"
        note += ", ...)" if (~enough).sum() > _SHOWN else ")"
        labels, notes = tuple(self.labels[label] for label in kept), (*self.notes, note)
        if self.known is not None:
            known = self.known[:, kept]
            weights = None if self.weights is None else self.weights[:, kept]
            part = replace(
                self, truth=self.truth[:, kept], known=known, weights=weights, labels=labels, notes=notes
            )
            return part.of_items(np.asarray(known.any(axis=1)))
        number = np.cumsum(enough) - 1
        of_kept: Array = np.isin(self.truth, kept)
        part = self.of_items(of_kept)
        return replace(part, truth=number[part.truth], labels=labels, notes=notes)

    def of_items(self, mask: Array) -> Samples:
        """Those of some items."""
        return replace(
            self, features=self.features[mask], truth=self.truth[mask],
            known=None if self.known is None else self.known[mask],
            weights=None if self.weights is None else self.weights[mask],
            groups=None if self.groups is None else self.groups[mask],
            ids=tuple(self.ids[number] for number in np.flatnonzero(mask)),
        )  # fmt: skip

    def require_templates(self) -> None:
        """Refuse to make prompts of labels whose templates differ.

        Raises:
            UsageError: the labels are of several label sets.
        """
        if not self.templates:
            raise UsageError(
                f"{self.source}: the marked labels are of label sets with different templates: give those of "
                "all labels as `template=`, or the labels of one set as `label_set=`"
            )

    def require_enough(self) -> None:
        """Refuse labels that too few items show, or do not show.

        Raises:
            UsageError: there is one; the message says which.
        """
        if len(self.labels) < 1 or (self.known is None and len(self.labels) < 2):
            found = f"only {self.labels[0]!r}" if self.labels else "none"
            raise UsageError(f"{self.source}: a head chooses among labels, and there is {found}")
        for counts, what in ((self.shown, "show it"), (self.not_shown, "are known not to show it")):
            rare = np.flatnonzero(counts < LEAST_ITEMS)
            if len(rare):
                first, count = self.labels[rare[0]], int(counts[rare[0]])
                more = f", as {counted(len(rare) - 1, 'other label')}" if len(rare) > 1 else ""
                raise UsageError(
                    f"{self.source}: label {first!r} needs {LEAST_ITEMS} items that {what}, and has "
                    f"{count}{more}; leave out labels with few items by `min_items=`"
                )
