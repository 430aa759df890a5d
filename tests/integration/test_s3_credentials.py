"""Credentials that change under a client: those of a file that is rewritten are used without a new start."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from clipfleet.errors import OutputUnavailableError, OutputUnreachableError
from clipfleet.outputs.s3 import s3_output
from clipfleet.s3.client import make_client
from tests.support.s3 import S3Bucket
from tests.support.s3_front import Fault, Rule, S3Front

STALE = "stale-key"


@pytest.fixture(autouse=True)
def stale(front: S3Front) -> None:
    """A store that calls the stale key expired."""
    front.place(Rule(fault=Fault.EXPIRED_TOKEN, access_key=STALE))


@pytest.fixture
def file(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The credentials file, which is not there yet."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path / "credentials"


def write(file: Path, key: str, secret: str = "guess") -> None:  # noqa: S107 - of nothing
    file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")


def write_good(file: Path, s3: S3Bucket) -> None:
    write(file, s3.environment["AWS_ACCESS_KEY_ID"], s3.environment["AWS_SECRET_ACCESS_KEY"])


def test_keys_that_are_missing_or_expired_are_read_again(s3: S3Bucket, file: Path) -> None:
    output = s3_output(f"{s3.uri}/x", make_client())
    with pytest.raises(OutputUnavailableError, match="set AWS_ACCESS_KEY_ID"):
        output.read("a")
    write(file, STALE)
    for call in (lambda: output.create("a", b""), lambda: output.read("a"), lambda: output.version("a")):
        with pytest.raises(OutputUnavailableError, match=r"ExpiredToken.*renew the credentials") as told:
            call()
        assert not isinstance(told.value, OutputUnreachableError)

    write_good(file, s3)

    assert output.create("a", b"one")
    assert output.read("a") == b"one"


def test_the_call_that_notices_succeeds(s3: S3Bucket, file: Path) -> None:
    write_good(file, s3)
    output = s3_output(f"{s3.uri}/x", make_client(attempts=1))
    assert output.create("a", b"one")
    write(file, STALE)
    assert output.read("a") == b"one"  # what works is not read again

    fresh = s3_output(f"{s3.uri}/x", make_client(attempts=1))
    with pytest.raises(OutputUnavailableError, match="ExpiredToken"):
        fresh.read("a")
    write_good(file, s3)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fresh.read, ["a"] * 8)) == [b"one"] * 8


def test_a_key_that_the_store_forgot_is_read_again(s3: S3Bucket, file: Path) -> None:
    client = make_client()
    for key, words in (
        ("deleted-key", "InvalidAccessKeyId"),
        (s3.environment["AWS_ACCESS_KEY_ID"], "SignatureDoesNotMatch"),
    ):
        write(file, key)
        with pytest.raises(ClientError, match=words):
            client.list_objects_v2(Bucket=s3.name)

    write_good(file, s3)

    assert client.list_objects_v2(Bucket=s3.name)["KeyCount"] == 0


def test_wrong_keys_are_asked_for_twice_and_no_more(s3: S3Bucket, front: S3Front, file: Path) -> None:
    write(file, STALE)

    with pytest.raises(ClientError, match="ExpiredToken"):
        make_client(attempts=5).list_objects_v2(Bucket=s3.name)

    assert front.hits == {Fault.EXPIRED_TOKEN: 2}
