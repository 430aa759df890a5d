"""What strangers have written does not command the terminal, nor forge lines of a log."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from rich.console import Console

from clipfleet.contract.parts import PART_COLUMNS
from clipfleet.results.formats import result_table
from clipfleet.terminal.console import printable, printable_lines, say, say_error
from clipfleet_worker.process.logs import FieldFormatter

HOSTILE = "a\x1b[2J\x1b]0;b\x07\rc\nd\x9be\u202ef\udc80"
SPELLED = r"a\x1b[2J\x1b]0;b\x07\rc\nd\x9be\u202ef\udc80"


def test_commands_are_spelled_out_and_words_of_all_languages_are_not() -> None:
    words = "Apfel \N{LATIN SMALL LETTER U WITH DIAERESIS} \u3000\u6f22 \U0001f469\u200d\U0001f52c \\n"

    assert printable(HOSTILE) == SPELLED
    assert printable_lines("a\nb\tc") == "a\nb\\tc"
    assert printable(words) == printable_lines(words) == words


def test_what_is_said_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"for example: {HOSTILE}")
    say_error(HOSTILE)

    said = capsys.readouterr().err
    assert not set("\x1b\x07\r\x9b\u202e") & set(said)
    assert r"a\x1b[2J" in said


def test_a_table_of_results() -> None:
    row: dict[str, Any] = dict.fromkeys(PART_COLUMNS)
    row |= {"item_index": 0, "item_id": HOSTILE, "status": "failed", "label": HOSTILE, "score": 0.5}
    row |= {"error_code": "broken_image", "error_detail": HOSTILE}

    table, _ = result_table([row], None, 200)

    file = io.StringIO()
    Console(file=file, width=300).print(table)
    assert file.getvalue().count(SPELLED) == 3
    assert not set("\x1b\x07\r\x9b\u202e") & set(file.getvalue())


def test_a_line_of_the_log() -> None:
    record = logging.LogRecord("ours", logging.WARNING, "", 0, "%s is away", (HOSTILE,), None)
    record.job_id = HOSTILE

    line = FieldFormatter("%(levelname)s %(message)s").format(record)

    assert line == f"WARNING {SPELLED} is away [job_id={SPELLED}]"
