"""TLS with a CA of one's own, for ledger and broker; and the file of users as a server loads it."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from kombu.exceptions import OperationalError

from clipfleet.errors import RedisUnavailableError
from clipfleet.hints import make_app
from clipfleet.ledger.jobs import Ledger
from clipfleet.redis.connection import connect
from clipfleet_worker.machine.child import Child
from clipfleet_worker.machine.embedded.server import HOST, free_port
from tests.conftest import service_is_missing
from tests.support.acl_users import USERS, users_file
from tests.support.ledger import add_job, work_off

_CONFIG = """\
bind {host}
port 0
tls-port {port}
tls-cert-file server.crt
tls-key-file server.key
tls-ca-cert-file ca.crt
tls-auth-clients no
aclfile users.acl
dir {folder}
save ""
"""
_COMMANDS = """\
openssl req -x509 -newkey rsa:2048 -nodes -keyout {ca}.key -out {ca}.crt -days 2 -subj /CN={ca}
openssl req -newkey rsa:2048 -nodes -keyout server.key -out s.csr -subj /CN=r -addext subjectAltName=IP:{host}
openssl x509 -req -in s.csr -CA {ca}.crt -CAkey {ca}.key -days 2 -copy_extensions copy -out server.crt
openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.crt -days 2 -subj /CN=other
"""


def make_certificates(folder: Path) -> None:
    """A CA and a server's certificate by it, and another CA that has signed nothing."""
    for line in _COMMANDS.format(ca="ca", host=HOST).splitlines():
        subprocess.run(line.split(), cwd=folder, check=True, capture_output=True)


class TlsRedis:
    """Debian's Redis; the embedded server has no TLS."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.passwords = {user: secrets.token_urlsafe(12) for user in USERS}

    def url(self, user: str, options: str = "") -> str:
        return f"rediss://clipfleet-{user}:{self.passwords[user]}@{HOST}:{self.port}/0{options}"

    def trusted_url(self, user: str) -> str:
        return self.url(user, f"?ssl_ca_certs={self.folder / 'ca.crt'}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRedis]:
    binary = shutil.which("redis-server")
    if binary is None or shutil.which("openssl") is None:
        service_is_missing(
            "no redis-server with TLS, or no openssl (Debian: apt-get install redis-server openssl)"
        )
    server = TlsRedis(tmp_path_factory.mktemp("tls"))
    make_certificates(server.folder)
    (server.folder / "users.acl").write_text(users_file(server.passwords))
    (server.folder / "redis.conf").write_text(
        _CONFIG.format(host=HOST, port=server.port, folder=server.folder)
    )

    def answers() -> bool:
        try:
            with connect(server.trusted_url("reader"), retries=0) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    child = Child(
        "Redis",
        [binary, str(server.folder / "redis.conf")],
        log=server.folder / "redis.log",
        is_ready=answers,
    )
    child.start()
    try:
        child.wait_ready()
        yield server
    finally:
        child.kill()


def test_the_ledger_with_the_users_of_the_file(server: TlsRedis) -> None:
    producer, worker = Ledger(server.trusted_url("producer")), Ledger(server.trusted_url("worker"))

    add_job(producer, chunks=3)

    assert len(work_off(worker)) == 3
    assert Ledger(server.trusted_url("reader")).status("job").ok == 30


def test_hints_go_over_tls(server: TlsRedis) -> None:
    app = make_app(server.trusted_url("producer"))
    app.send_task("clipfleet.work", argsrepr="-", kwargsrepr="-")
    app.close()

    with connect(server.trusted_url("worker")) as client:
        assert client.llen("clipfleet") == 1


@pytest.mark.parametrize(
    "options", ["", "?ssl_ca_certs={folder}/other.crt", "?ssl_ca_certs={folder}/none.crt"]
)
def test_a_certificate_of_nobody_we_know_is_refused(server: TlsRedis, options: str) -> None:
    url = server.url("producer", options.format(folder=server.folder))

    with pytest.raises(RedisUnavailableError) as caught:
        Ledger(url).ping()
    with make_app(url).connection_for_write() as connection, pytest.raises(OperationalError) as broker:
        connection.ensure_connection(max_retries=1, interval_start=0)

    for error in (caught.value, broker.value):
        assert server.passwords["producer"] not in repr(error)


def test_without_tls_nothing_answers(server: TlsRedis) -> None:
    with pytest.raises(RedisUnavailableError):
        Ledger(server.url("producer").replace("rediss://", "redis://")).ping()
