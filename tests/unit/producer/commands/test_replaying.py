"""What `clipfleet moderate --replay` prints."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from clipfleet.commands.moderating import replaying
from clipfleet.replay.outcome import Replayed
from clipfleet.submit.options import JobOptions

OLD = {"name": "uploads", "version": "1", "sha256": "a" * 64}
NEW = {"name": "uploads", "version": "", "sha256": "b" * 64}


def reason(label: str | None, score: float | None, **values: Any) -> dict[str, Any]:
    defaults = {"rule": "weapons", "head": None, "label": label, "score": score, "threshold": 0.5,
                "test": "at_least"}  # fmt: skip
    return {**defaults, **values}


CHANGE = {
    "item_index": 3, "item_id": "a\x1b.jpg", "uri": "/a.jpg", "old": "flag", "new": "allow",
    "decision_id": "dec-3",
    "old_reasons": [reason("knife", 0.81), reason("gun", 0.7), reason("bomb", 0.6)], "new_reasons": [],
}  # fmt: skip


def shown(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    options: JobOptions | None = None,
    as_json: bool = False,
    **values: Any,
) -> tuple[str, str]:
    """What is printed on stdout and on stderr."""
    defaults: dict[str, Any] = {
        "source": "/out", "old_policy": OLD, "new_policy": NEW, "from_scores": False,
        "counts": {("flag", "allow"): 1200, ("allow", "allow"): 3, ("undecided", "undecided"): 2},
        "failed": {"timeout": 2}, "examples": {"timeout": "b.jpg"}, "decided_otherwise": 1,
        "shown": [CHANGE], "outputs": None, "changes_file": None,
    }  # fmt: skip
    found = Replayed(**(defaults | values))

    client = SimpleNamespace(replay=lambda *_, **__: found)
    monkeypatch.setattr(replaying, "open_client", lambda: nullcontext(client))
    replaying.replay(
        "out/", Path("new.yaml"), against=None, as_of=None, changes=None, options=options or JobOptions(),
        as_json=as_json,
    )  # fmt: skip
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_the_matrix_and_the_changes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = shown(capsys, monkeypatch)

    assert "/out: 1,205 items by their vectors in " in out
    assert f"old  uploads 1 ({'a' * 12})\nnew  uploads ({'b' * 12})\n" in out
    (flag,) = (line.split() for line in out.splitlines() if line.startswith("flag "))
    assert flag == ["flag", "0", "0", "1,200", "0"]
    assert "1,200 items of 1,205 change side" in out
    assert r"a\x1b.jpg" in out
    assert "weapons: knife 0.810 >= 0.5; weapons: gun 0.700 >= 0.5 and 1 more" in out
    assert "no rule" in out
    assert "and 1,199 more: --changes FILE.csv writes all of them" in err
    assert "2 items without a vector failed and stay undecided (timeout: 2, for example b.jpg)" in err
    assert "1 item near a threshold" in err


def test_one_change_in_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = shown(
        capsys, monkeypatch, counts={("flag", "allow"): 1}, failed={}, decided_otherwise=0, from_scores=True,
        changes_file="changes.csv", options=JobOptions(output="/decided"),
    )  # fmt: skip

    assert "1 item by their scores" not in out and "/out: 1 item by its scores in " in out
    assert "1 item of 1 changes side" in out
    assert err == "1 change -> changes.csv\nthe stored scores were enough: nothing was written to /decided\n"


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (reason("knife", 0.25, test="below"), "weapons: knife 0.250 < 0.5"),
        (reason("knife", None), "weapons: knife without a score, at least 0.5"),
        (reason(None, 3.5, head="taste", test="below", threshold=4), "weapons: taste 3.500 < 4"),
        (reason("b", 0.75, head="style", test="chosen", threshold=None), "weapons: style b 0.750, chosen"),
    ],
)
def test_reasons(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, one: dict[str, Any], words: str
) -> None:
    out, _ = shown(capsys, monkeypatch, shown=[{**CHANGE, "old_reasons": [one]}])

    assert words in out


def test_an_interrupt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["clipfleet", "moderate", "--replay", "out/", "--policy", "new.yaml"])

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(replaying, "open_client", lambda: nullcontext(SimpleNamespace(replay=interrupted)))
    with pytest.raises(typer.Exit) as ended:
        replaying.replay(
            "out/", Path("new.yaml"), against=None, as_of=None, changes=None, options=JobOptions(),
            as_json=False,
        )  # fmt: skip

    assert ended.value.exit_code == 130
    again = "clipfleet moderate --replay out/ --policy new.yaml"
    words = f"Cancelled; nothing was recorded. Run it again with `{again}`"
    assert capsys.readouterr().err.replace("\n", " ").strip() == words


def test_one_object(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = shown(capsys, monkeypatch, as_json=True)

    answer = json.loads(out)
    assert (answer["changed"], answer["counts"]["flag"]["allow"], err) == (1200, 1200, "")
    assert answer["changes"] == [CHANGE]
    assert answer["seconds"] >= 0
