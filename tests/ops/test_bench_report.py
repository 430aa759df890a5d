"""The reporter of all benches: what it prints, and what its JSON keeps."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from clipfleet.errors import WorldError
from ops.bench.report import Report, names_of, positive, positives
from ops.bench.rounds import in_turns, median_ratio


def test_the_json_says_what_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "result.json"
    with Report("decode", path) as report:
        table = report.table({"image": "<9", "images/s": "10.1f"}, "one core")
        table.row("640x480", 963.14)
        table.row("a long name", "-")
        report.goal("ratio", 2.5, at_least=2.4)
        report.goal("MB", 301.0, at_most=300)

    result = json.loads(path.read_text())
    assert result["bench"] == "decode"
    assert result["tables"][0] == {
        "title": "one core",
        "rows": [
            {"image": "640x480", "images/s": 963.14},
            {"image": "a long name", "images/s": "-"},
        ],
    }
    assert [goal["is_held"] for goal in result["goals"]] == [True, False]
    assert report.exit_code == 1
    assert result["machine"]["cores"] >= 1
    assert result["versions"]["python"].startswith("3.")
    assert {"commit", "dirty", "command", "load_average", "seconds"} <= result.keys()
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:5] == [
        "one core",
        "image        images/s",
        "640x480         963.1",
        "a long name           -",
    ]
    assert "MB: 301 (goal <= 300)  MISSED" in printed


def test_a_run_that_fails_leaves_no_result(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Report("decode", tmp_path / "result.json"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended, Report("decode", tmp_path / "result.json"):
        raise WorldError("no server here")
    assert ended.value.code == "bench decode: no server here"
    assert not list(tmp_path.iterdir())


def test_options_are_numbers_from_1_on_and_names_that_are_known() -> None:
    names = names_of(("folder", "http"))
    assert (positives("1,100"), names("http,folder")) == ([1, 100], ["http", "folder"])
    for refused in ("0", "-1", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="no whole number from 1 on"):
            positive(refused)
    with pytest.raises(argparse.ArgumentTypeError, match="'nope' is none of folder, http"):
        names("folder,nope")


def test_routes_take_turns_and_the_first_round_is_dropped() -> None:
    order: list[str] = []

    def route(name: str, values: list[float]) -> float:
        order.append(name)
        return values.pop(0)

    slow, fast = [9.0, 4.0, 6.0], [9.0, 2.0, 2.0]
    found = in_turns({"slow": lambda: route("slow", slow), "fast": lambda: route("fast", fast)}, 2)

    assert order == ["fast", "slow", "slow", "fast", "fast", "slow"]
    assert found == {"slow": [4.0, 6.0], "fast": [2.0, 2.0]}
    assert median_ratio(found["slow"], found["fast"]) == 2.5
