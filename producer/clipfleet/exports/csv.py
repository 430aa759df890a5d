"""`rows.csv`: all rows and all columns, as `clipfleet results --format csv` prints them; lists are JSON."""

from __future__ import annotations

from pathlib import Path

from clipfleet.exports.counts import ExportCounts
from clipfleet.result_formats import ResultFormat, write
from clipfleet.results import RowReader

FILE = "rows.csv"


def export_csv(reader: RowReader, folder: Path) -> ExportCounts:
    """Write the layout into a folder."""
    with (folder / FILE).open("wb") as file:
        return ExportCounts(write(reader, ResultFormat.CSV, file), left_out=0)
