"""Copies of a job's rows in the layouts of other programs, one file per layout. Changes no output.

An export reads rows from any output. It appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from clipfleet.exports.clip_retrieval import export_clip_retrieval
from clipfleet.exports.fiftyone import export_fiftyone
from clipfleet.exports.hugging_face import export_hugging_face, export_hugging_face_images
from clipfleet.exports.label_studio import export_label_studio
from clipfleet.exports.new_folder import ExportCounts, new_folder
from clipfleet.exports.openai_batch import export_openai_batch
from clipfleet.exports.webdataset import export_webdataset
from clipfleet.marking.correcting import with_stored_marks
from clipfleet.results.formats import write
from clipfleet.results.kinds import Layout, ResultFormat
from clipfleet.results.rows import RowReader

__all__ = ["ExportCounts", "Layout", "export"]


FILE = "rows.csv"


def export_csv(reader: RowReader, folder: Path) -> ExportCounts:
    """Write all rows as CSV into a folder."""
    with (folder / FILE).open("wb") as file:
        return ExportCounts(write(reader, ResultFormat.CSV, file), left_out=0)


_EXPORTS: dict[Layout, Callable[[RowReader, Path], ExportCounts]] = {
    Layout.CLIP_RETRIEVAL: export_clip_retrieval,
    Layout.OPENAI_BATCH: export_openai_batch,
    Layout.HUGGING_FACE: export_hugging_face,
    Layout.HUGGING_FACE_IMAGES: export_hugging_face_images,
    Layout.LABEL_STUDIO: export_label_studio,
    Layout.FIFTYONE: export_fiftyone,
    Layout.WEBDATASET: export_webdataset,
    Layout.CSV: export_csv,
}


def export(reader: RowReader, layout: Layout, folder: Path) -> ExportCounts:
    """Write the rows so far into a new or empty folder, in bounded memory. Creates parent folders.

    Marks that are stored beside the rows are applied, see `CorrectedRows`.

    Raises:
        UsageError: the folder is not empty, or the rows do not fit the layout; nothing was written.
        OutputUnavailableError: the folder cannot be written. Otherwise see `RowReader.read`.
    """
    corrected = with_stored_marks(reader)
    with new_folder(folder) as scratch:
        counts = _EXPORTS[layout](corrected or reader, scratch)
    return counts if corrected is None else replace(counts, notes=(*counts.notes, *corrected.notes()))
