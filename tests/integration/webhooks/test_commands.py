"""`clipfleet webhooks` on a real server: endpoints, secrets, failures; what is wrong is said in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from clipfleet import commands as cli
from clipfleet.contract.webhooks import EventType, secret_bytes
from clipfleet.ledger.events.outbox import Outbox
from tests.support.endpoints import make_gone

URL = "https://example.com/hooks"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def outbox(redis_url: str) -> Iterator[Outbox]:
    outbox = Outbox(redis_url)
    yield outbox
    outbox.close()


@pytest.fixture
def run(redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `clipfleet webhooks WORDS`; returns its exit code and what it prints."""
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", redis_url)
    monkeypatch.setenv("COLUMNS", "400")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipfleet", "webhooks", *words])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets one of its own
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        code = ended.value.code
        return (code if isinstance(code, int) else 0), shown.out, shown.err

    return run


@pytest.fixture
def ask(run: Run) -> Callable[..., Any]:
    """The object that a command prints with `--json`."""

    def ask(*words: str) -> Any:
        code, out, err = run(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    return ask


def fail_events(outbox: Outbox, count: int = 3) -> None:
    """Events that cannot be delivered to anyone."""
    for number in range(count):
        outbox.publish(f"evt-{number}", EventType.DECISION_FLAG, "{}", "uploads")
    while deliveries := outbox.claim("t" + str(count), 10, 60):
        for delivery in deliveries:
            outbox.fail(delivery, "example.com: HTTP status 500")
        count += 1


class TestEndpoints:
    def test_add_prints_the_secret_alone(self, run: Run, outbox: Outbox) -> None:
        code, out, err = run("add", URL)

        assert code == 0
        assert len(secret_bytes(out.strip())) == 32
        assert out.count("\n") == 1
        (endpoint,) = outbox.endpoints()
        assert outbox.secrets(endpoint) == (out.strip(),)
        assert (endpoint.url, endpoint.events, endpoint.policies) == (URL, (), ())
        assert endpoint.endpoint_id in err
        assert out.strip() not in err

    def test_what_an_endpoint_gets(self, ask: Callable[..., Any], run: Run) -> None:
        added = ask(
            "add", URL, "--event", "decision.flag", "--event", "job.completed", "--event", "decision.flag",
            "--policy", "uploads",
        )  # fmt: skip
        assert added.pop("secret").startswith("whsec_")
        (listed,) = ask("list")["endpoints"]

        assert listed == added | {"pending": 0, "failed": 0, "last_error": None}
        assert listed["events"] == ["decision.flag", "job.completed"]
        _, table, _ = run("list")
        assert "decision.flag, job.completed" in table
        assert "uploads" in table
        assert "whsec_" not in table + json.dumps(listed)

    def test_none_yet(self, run: Run) -> None:
        code, out, err = run("list")

        assert (code, out) == (0, "")
        assert "`clipfleet webhooks add URL`" in err

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            (["ftp://example.com/"], "URL"),
            (["example.com/hooks"], "URL"),
            (["https://user:hidden@example.com/"], "URL"),
            (["https://exa mple.com/"], "URL"),
            (["https://example.com:port/"], "URL"),
            ([f"https://example.com/{'x' * 3000}"], "URL"),
            ([URL, "--event", "decision.flagged"], "decision.undecided"),
            ([URL, "--policy", "no policy"], "--policy"),
        ],
    )
    def test_what_is_no_endpoint(self, run: Run, outbox: Outbox, words: list[str], complaint: str) -> None:
        code, out, err = run("add", *words)

        assert (code, out) == (2, "")
        assert complaint in err
        assert "hidden" not in err
        assert outbox.endpoints() == []

    @pytest.mark.parametrize(
        ("url", "note"),
        [
            ("http://127.0.0.1:8000/", "CLIPFLEET_ALLOW_PRIVATE"),
            ("https://localhost/", "CLIPFLEET_ALLOW_PRIVATE"),
            ("https://[fd00::1]/", "CLIPFLEET_ALLOW_PRIVATE"),
            ("http://example.com/", "not encrypted"),
        ],
    )
    def test_notes(self, run: Run, url: str, note: str) -> None:
        code, _, err = run("add", url)

        assert code == 0
        assert f"note: {err.split('note: ')[1]}" in err
        assert note in err
        assert "note" not in run("add", URL)[2]

    def test_remove(self, ask: Callable[..., Any], run: Run) -> None:
        name = ask("add", URL)["endpoint_id"]

        assert ask("remove", name) == {"endpoint_id": name, "removed": True}
        code, _, err = run("remove", name)
        assert code == 2
        assert f"{name}: no such endpoint" in err

    def test_enable(self, ask: Callable[..., Any], run: Run, outbox: Outbox) -> None:
        name = ask("add", URL)["endpoint_id"]
        make_gone(outbox, name, "example.com: HTTP status 410")

        assert "disabled: example.com: HTTP status 410" in run("list")[1]
        assert ask("enable", name) == {"endpoint_id": name, "changed": True}
        assert ask("enable", name) == {"endpoint_id": name, "changed": False}
        assert outbox.endpoints()[0].disabled is None


class TestRotation:
    def test_both_sign_until_it_is_finished(self, ask: Callable[..., Any], run: Run, outbox: Outbox) -> None:
        added = ask("add", URL)
        name, old = added["endpoint_id"], added["secret"]
        code, out, err = run("rotate", name)
        new = out.strip()

        assert code == 0
        assert f"rotate {name} --finish" in err
        assert outbox.secrets(outbox.endpoint(name)) == (new, old)
        assert "two secrets" in run("list")[1]
        assert ask("rotate", name, "--finish")["secrets"] == 1
        assert outbox.secrets(outbox.endpoint(name)) == (new,)

    def test_one_after_the_other(self, ask: Callable[..., Any], run: Run) -> None:
        name = ask("add", URL)["endpoint_id"]

        code, _, err = run("rotate", name, "--finish")
        assert (code, "has one secret" in err) == (2, True)
        run("rotate", name)
        code, out, err = run("rotate", name)
        assert (code, out, "--finish" in err) == (2, "", True)

    def test_deliveries_stay(self, ask: Callable[..., Any], outbox: Outbox) -> None:
        name = ask("add", URL)["endpoint_id"]
        outbox.publish("evt-1", EventType.JOB_COMPLETED, "{}")
        ask("rotate", name)

        assert ask("list")["endpoints"][0]["pending"] == 1


class TestFailures:
    def test_they_are_listed_and_replayed(self, ask: Callable[..., Any], run: Run, outbox: Outbox) -> None:
        name = ask("add", URL)["endpoint_id"]
        fail_events(outbox)

        found = ask("failures", name)["failures"]
        assert {one["event_id"] for one in found} == {"evt-0", "evt-1", "evt-2"}
        assert found[0]["error"] == "example.com: HTTP status 500"
        assert "evt-1" in run("failures")[1]
        assert len(ask("failures", "--limit", "2")["failures"]) == 2
        assert ask("replay", name, "--event-id", "evt-1") == {"endpoint_id": name, "replayed": 1}
        assert ask("replay", name, "--since", "2020-01-01", "--until", "2020-01-02")["replayed"] == 0
        assert ask("replay", name, "--since", "2020-01-01T10:30")["replayed"] == 2
        assert ask("failures")["failures"] == []
        assert ask("list")["endpoints"][0]["pending"] == 3
        assert "nothing to replay" in run("replay", name, "--all")[2]

    def test_none(self, run: Run) -> None:
        code, out, err = run("failures")

        assert (code, out) == (0, "")
        assert "no failures" in err

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            ([], "say what to replay"),
            (["--all", "--event-id", "evt-1"], "say what to replay"),
            (["--all", "--since", "2026-12-03"], "say what to replay"),
            (["--since", "yesterday"], "--since yesterday: not a day or time"),
            (["--until", "9999999999999"], "--until 9999999999999: not a day or time"),
        ],
    )
    def test_what_cannot_be_replayed(
        self, ask: Callable[..., Any], run: Run, words: list[str], complaint: str
    ) -> None:
        name = ask("add", URL)["endpoint_id"]
        code, _, err = run("replay", name, *words)

        assert code == 2
        assert complaint in err

    def test_a_disabled_endpoint_is_enabled_first(
        self, ask: Callable[..., Any], run: Run, outbox: Outbox
    ) -> None:
        name = ask("add", URL)["endpoint_id"]
        fail_events(outbox)
        make_gone(outbox, name)
        code, _, err = run("replay", name, "--all")

        assert code == 2
        assert f"`clipfleet webhooks enable {name}` first" in err
        assert f"`clipfleet webhooks replay {name} --all`" in run("enable", name)[2]

    @pytest.mark.parametrize("command", ["failures", "replay", "rotate", "enable"])
    def test_an_unknown_endpoint(self, run: Run, command: str) -> None:
        more = ["--all"] if command == "replay" else []
        code, _, err = run(command, "whe-000000000000", *more)

        assert code == 2
        assert "whe-000000000000: no such endpoint; `clipfleet webhooks list` shows all" in err
