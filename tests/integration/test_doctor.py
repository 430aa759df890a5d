"""`clipfleet-worker doctor` finds what was planted, and names what helps; where all is well it says so."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest
import redis

from clipfleet.redis.connection import connect
from clipfleet_worker.doctor import Check, Finding, Level, examine
from clipfleet_worker.doctor.all_checks import all_checks
from clipfleet_worker.settings import WorkerSettings
from tests.support.acl_users import make_users, url_of
from tests.support.s3 import S3Bucket
from tests.support.s3_front import Fault, Rule, S3Front

pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Site:
    """Everything as it should be."""

    redis_url: str
    folder: Path

    def settings(self, **changes: Any) -> WorkerSettings:
        return WorkerSettings(
            **{
                "redis_url": self.redis_url,
                "models": "demo",
                "file_roots": str(self.folder),
                "output_roots": str(self.folder),
                **changes,
            }
        )

    def checks(self, *names: str, **changes: Any) -> list[Check]:
        return [check for check in all_checks(self.settings(**changes), {}, ()) if check.name in names]


@pytest.fixture
def site(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    for name in [name for name in os.environ if name.startswith("CLIPFLEET_")]:
        monkeypatch.delenv(name)
    return Site(redis_url, tmp_path)


def only_fault(checks: list[Check], level: Level = Level.PROBLEM) -> Finding:
    """The one finding that is not fine."""
    (found,) = [finding for finding in examine(checks) if finding.level is not Level.OK]
    assert found.level is level
    assert found.remedy
    return found


@contextmanager
def closed_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """One that this user may not enter; also for root, whom the system lets in everywhere."""
    there_is = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        if folder in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return there_is(path, **options)

    def access(path: Any, mode: int) -> bool:
        return folder not in Path(path).parents and (Path(path) != folder or mode == os.F_OK)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        patch.setattr(os, "access", access)
        yield


@contextmanager
def configured(url: str, name: str, value: str) -> Iterator[None]:
    with connect(url) as client:
        before = client.config_get(name)[name]
        client.config_set(name, value)
        try:
            yield
        finally:
            client.config_set(name, before)


class TestTheWholeCommand:
    def run(self, site: Site, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("CLIPFLEET_", "AWS_"))
        }
        return subprocess.run(
            [sys.executable, "-m", "clipfleet_worker", "doctor", *arguments],
            env={
                **environment,
                "CLIPFLEET_REDIS_URL": site.redis_url,
                "CLIPFLEET_MODELS": "demo",
                "CLIPFLEET_FILE_ROOTS": str(site.folder),
                "CLIPFLEET_OUTPUT_ROOTS": str(site.folder),
                **changes,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def test_where_all_is_well(self, site: Site, s3: S3Bucket) -> None:
        aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

        ended = self.run(site, "--json", "--output", f"{s3.uri}/results", **aws)

        assert ended.returncode == 0, ended.stderr
        findings = json.loads(ended.stdout)["findings"]
        assert [one for one in findings if one["level"] != "ok"] == []
        assert {one["check"] for one in findings} == {
            "settings", "machine", "redis", "broker", "folders", "s3", "device", "decode", "model"
        }  # fmt: skip
        assert s3.keys() == []
        assert list(site.folder.iterdir()) == []
        with connect(site.redis_url) as client:
            assert client.dbsize() == 0

    def test_several_faults_at_once(self, site: Site) -> None:
        missing = str(site.folder / "missing")

        ended = self.run(
            site,
            CLIPFLEET_REDIS_URL="redis://127.0.0.1:1/0",
            CLIPFLEET_OUTPUT_ROOTS=missing,
            CLIPFLEET_REDIS="x",
        )

        assert ended.returncode == 1
        assert ended.stdout.endswith("2 problems, 1 warnings\n")
        for words in ("-> is it running", missing, "-> create it", "CLIPFLEET_REDIS is not a setting"):
            assert words in ended.stdout
        assert "Traceback" not in ended.stdout + ended.stderr

    def test_an_output_that_is_no_bucket(self, site: Site) -> None:
        ended = self.run(site, "--output", "results")

        assert ended.returncode == 2
        assert "CLIPFLEET_OUTPUT_ROOTS" in ended.stderr


class TestRedis:
    def test_append_only_file_is_off(self, site: Site) -> None:
        with configured(site.redis_url, "appendonly", "no"):
            found = only_fault(site.checks("redis"))
        assert "AOF is off" in found.what and "appendonly yes" in found.remedy

    @pytest.mark.parametrize(("limit", "level"), [("100mb", Level.PROBLEM), ("0", Level.WARNING)])
    def test_it_evicts(self, site: Site, limit: str, level: Level) -> None:
        with (
            configured(site.redis_url, "maxmemory", limit),
            configured(site.redis_url, "maxmemory-policy", "allkeys-lru"),
        ):
            found = only_fault(site.checks("redis"), level)
        assert "allkeys-lru" in found.what and "noeviction" in found.remedy

    def test_it_is_nearly_full(self, site: Site) -> None:
        with connect(site.redis_url) as client:
            used = client.info("memory")["used_memory"]
        with configured(site.redis_url, "maxmemory", str(int(used * 1.02))):
            found = only_fault(site.checks("redis"), Level.WARNING)
        assert "in use" in found.what and "maxmemory" in found.remedy

    def test_a_wrong_password(self, site: Site) -> None:
        wrong = f"redis://:wrong@{site.redis_url.rpartition('@')[2]}"
        found = only_fault(site.checks("redis", redis_url=wrong))
        assert "login refused" in found.what and "CLIPFLEET_REDIS_URL" in found.remedy
        assert "wrong@" not in found.what

    def test_a_database_that_is_not_there(self, site: Site) -> None:
        url = f"{site.redis_url.rpartition('/')[0]}/99"
        found = only_fault(site.checks("redis", redis_url=url))
        assert "DB index" in found.what and "CLIPFLEET_REDIS_URL" in found.remedy

    @pytest.mark.parametrize(
        ("name", "value", "said", "remedy"),
        [
            ("min-replicas-to-write", "1", "good replicas", "start its replicas"),
            ("maxmemory", "100kb", "used memory", "raise maxmemory"),
        ],
    )
    def test_it_rejects_writes(self, site: Site, name: str, value: str, said: str, remedy: str) -> None:
        with configured(site.redis_url, name, value):
            found = list(examine(site.checks("redis")))
        (refused,) = [one for one in found if one.level is Level.PROBLEM]
        assert said in refused.what and remedy in refused.remedy
        with connect(site.redis_url) as client:
            assert not client.keys("clipfleet:doctor*")

    def test_a_replica(self, site: Site) -> None:
        with connect(site.redis_url) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
            try:
                found = only_fault(site.checks("redis"))
            finally:
                client.execute_command("REPLICAOF", "NO", "ONE")
        assert "replica" in found.what and "primary" in found.remedy

    def test_a_user_who_lacks_a_command(self, site: Site) -> None:
        with connect(site.redis_url) as admin:
            url = url_of("worker", make_users(admin), site.redis_url)
            found = only_fault(site.checks("redis", redis_url=url), Level.WARNING)
            assert "INFO" in found.what and "aof_enabled" in found.remedy
            admin.execute_command("ACL", "SETUSER", "clipfleet-worker", "-zadd", "-brpop")

            _, found = [one for one in examine(site.checks("redis", redis_url=url)) if one.level != "ok"]

        assert "BRPOP" in found.what and "ZADD" in found.what and "users.acl" in found.remedy

    def test_a_clock_that_is_off(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(redis.Redis, "time", lambda _: (1_000_000_000, 0))
        found = only_fault(site.checks("redis"), Level.WARNING)
        assert "ahead of that of Redis" in found.what and "NTP" in found.remedy

    def test_a_server_that_is_too_old(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "clipfleet_worker.doctor.redis_check._hello", lambda _: {"server": "redis", "version": "6.0.16"}
        )
        found = only_fault(site.checks("redis"))
        assert "6.0.16" in found.what and "6.2" in found.remedy

    def test_a_server_that_never_answers(self, site: Site) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
            (check,) = site.checks("redis", redis_url=url)
            found = only_fault([replace(check, limit_seconds=0.5)])
        assert "0.5 s" in found.what

    def test_a_broker_behind_sentinels_that_are_not_there(self, site: Site) -> None:
        found = only_fault(site.checks("broker", broker_url="sentinel://:secret@127.0.0.1:1/ours"))
        assert "No master found" in found.what and "CLIPFLEET_BROKER_URL" in found.remedy
        assert "redis.connection" not in found.what and "secret" not in found.what

    def test_a_broker_that_is_not_there(self, site: Site) -> None:
        found = only_fault(site.checks("broker", broker_url="amqp://me:secret@127.0.0.1:1//"))
        assert "127.0.0.1:1" in found.what and "secret" not in found.what
        assert "CLIPFLEET_BROKER_URL" in found.remedy


class TestFolders:
    @pytest.mark.parametrize("roots", ["file_roots", "output_roots"])
    def test_a_root_that_is_missing(self, site: Site, roots: str) -> None:
        found = only_fault(site.checks("folders", **{roots: str(site.folder / "missing")}))
        assert "missing" in found.what and f"CLIPFLEET_{roots.upper()}" in found.remedy

    @pytest.mark.parametrize("roots", ["file_roots", "output_roots"])
    def test_a_root_below_a_folder_that_may_not_be_entered(
        self, site: Site, roots: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with closed_folder(monkeypatch, site.folder / "closed"):
            found = only_fault(site.checks("folders", **{roots: str(site.folder / "closed" / "root")}))
        assert "is not readable" in found.what and "chmod o+rx" in found.remedy

    def test_an_output_that_cannot_be_written(self, site: Site) -> None:
        # Root may write everywhere but here.
        found = only_fault(site.checks("folders", output_roots="/proc"))
        assert "/proc" in found.what and "write" in found.remedy

    def test_a_disk_that_is_full(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(site.folder)._replace(free=5 << 20)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        found = only_fault(site.checks("folders"), Level.WARNING)
        assert "5 MiB" in found.what and "space" in found.remedy


class TestMachine:
    def test_a_port_that_is_taken(self, site: Site) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            found = only_fault(site.checks("machine", health_port=port))
        assert str(port) in found.what and "CLIPFLEET_HEALTH_PORT" in found.remedy

    def test_a_host_that_is_none_of_this_machine(self, site: Site) -> None:
        found = only_fault(site.checks("machine", health_port=8081, health_host="203.0.113.7"))
        assert "203.0.113.7:8081" in found.what and "CLIPFLEET_HEALTH_HOST" in found.remedy

    def test_far_too_many_threads(self, site: Site) -> None:
        found = only_fault(site.checks("machine", decode_threads=100_000), Level.WARNING)
        assert "CLIPFLEET_DECODE_THREADS" in found.what

    def test_few_open_files(self, site: Site) -> None:
        found = only_fault(site.checks("machine", total_connections=100_000_000), Level.WARNING)
        assert "files" in found.what and "CLIPFLEET_TOTAL_CONNECTIONS" in found.remedy

    def test_more_memory_than_there_is(self, site: Site) -> None:
        found = only_fault(site.checks("machine", max_memory_bytes=1 << 50), Level.WARNING)
        assert "CLIPFLEET_MAX_MEMORY_BYTES" in found.what and "lower" in found.remedy

    def test_no_place_for_temporary_files(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", "/proc")
        found = only_fault(site.checks("machine"))
        assert "temporary" in found.what and "TMPDIR" in found.remedy

    def test_a_home_of_another_user(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        home = site.folder / "root"
        monkeypatch.setenv("HF_HOME", str(home / ".cache" / "huggingface"))
        with closed_folder(monkeypatch, home):
            found = only_fault(site.checks("machine"), Level.WARNING)
        assert "is not writable" in found.what and "HF_HOME" in found.remedy

    def test_a_gpu_that_is_not_there(self, site: Site) -> None:
        found = only_fault(site.checks("device", device="cuda:7"))
        assert "cuda:7" in found.what and "CLIPFLEET_DEVICE" in found.remedy

    def test_a_gpu_that_torch_cannot_use(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr("clipfleet_worker.process.device._NVIDIA_DRIVER", site.folder)
        monkeypatch.setattr("clipfleet_worker.process.device._GPU_DRIVERS", (site.folder,))
        found = only_fault(site.checks("device"))
        assert "GPU" in found.what and "CLIPFLEET_DEVICE=cpu" in found.remedy

    def test_a_precision_that_the_device_has_not(self, site: Site) -> None:
        found = only_fault(site.checks("device", precision="fp16", device="cpu"))
        assert "fp16" in found.what and "CLIPFLEET_PRECISION" in found.remedy

    def test_a_backend_that_is_not_installed(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("clipfleet_worker.encode.backends.cpu_backends.find_spec", lambda name: None)
        found = only_fault(site.checks("device", backend="openvino", device="cpu"))
        assert "CLIPFLEET_BACKEND" in found.what and "clipfleet[openvino]" in found.remedy

    def test_a_decoder_that_is_off(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        from clipfleet_worker.decode import decoder as decode

        right = decode._fit_scaled
        monkeypatch.setattr(
            decode,
            "_fit_scaled",
            lambda *given: decode.DecodedImage(255 - right(*given).pixels, *right(*given).pixels.shape[:2]),
        )
        found = only_fault(site.checks("decode"))
        assert "grey levels" in found.what and "simplejpeg" in found.remedy


class TestModels:
    def test_an_unknown_name(self, site: Site) -> None:
        found = only_fault(site.checks("model", models="ViT-B-33:datacomp_xl_s13b_b90k"))
        assert "ViT-B-33" in found.what and "models list" in found.remedy

    def test_one_that_is_not_on_this_machine(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(site.folder))
        found = only_fault(site.checks("model", models="ViT-B-32:datacomp_xl_s13b_b90k"), Level.WARNING)
        assert "not on this machine" in found.what and "models pull ViT-B-32" in found.remedy

    def test_weights_that_are_damaged(self, site: Site) -> None:
        folder = self.copied(site)
        weights = folder / "open_clip_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100_000])
        found = only_fault(site.checks("model", models=f"local-dir:{folder}"))
        assert str(folder) in found.what and "remove" in found.remedy

    def test_weights_that_are_no_numbers(self, site: Site) -> None:
        from safetensors.torch import load_file, save_file

        folder = self.copied(site)
        weights = folder / "open_clip_model.safetensors"
        tensors = load_file(weights)
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
        save_file(tensors, weights)
        found = only_fault(site.checks("model", models=f"local-dir:{folder}"))
        assert "nan" in found.what and "remove" in found.remedy

    def copied(self, site: Site) -> Path:
        folder = site.folder / "model"
        with as_file(files("clipfleet_worker") / "demo_model") as demo:
            shutil.copytree(demo, folder)
        return folder


class TestS3:
    def check(self, site: Site, uri: str, is_output: bool = True) -> list[Check]:
        outputs = [uri] if is_output else []
        changes = {} if is_output else {"s3_buckets": uri.removeprefix("s3://")}
        return [one for one in all_checks(site.settings(**changes), {}, outputs) if one.name == "s3"]

    def test_a_bucket_that_is_missing(self, site: Site, s3: S3Bucket) -> None:
        found = only_fault(self.check(site, "s3://there-is-no-such-bucket/x"))
        assert "NoSuchBucket" in found.what and "create the bucket" in found.remedy

    def test_a_bucket_that_workers_refuse(self, site: Site, s3: S3Bucket) -> None:
        settings = site.settings(s3_buckets=s3.uri.removeprefix("s3://") + "-other")
        checks = list(all_checks(settings, {}, [f"{s3.uri}/x"]))
        found = only_fault([one for one in checks if one.name == "s3"][:1])
        assert "CLIPFLEET_S3_BUCKETS" in found.what

    def test_a_wrong_secret(self, site: Site, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        found = only_fault(self.check(site, s3.uri))
        assert "AWS_SECRET_ACCESS_KEY" in found.remedy

    def test_a_store_that_is_away(self, site: Site, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
        found = only_fault(self.check(site, s3.uri))
        assert "AWS_ENDPOINT_URL" in found.remedy

    @pytest.mark.parametrize(("is_output", "level"), [(True, Level.PROBLEM), (False, Level.WARNING)])
    def test_a_bucket_that_is_read_only(
        self, site: Site, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch, is_output: bool, level: Level
    ) -> None:
        with self.front(s3, monkeypatch, Rule(fault=Fault.ACCESS_DENIED, method="PUT")):
            found = only_fault(self.check(site, s3.uri, is_output), level)
        assert "cannot be written" in found.what

    def test_a_clock_that_is_off(self, site: Site, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        with self.front(s3, monkeypatch, Rule(fault=Fault.SKEWED)):
            found = only_fault(self.check(site, s3.uri))
        assert "RequestTimeTooSkewed" in found.what and "clock" in found.remedy

    def test_a_web_server_that_is_no_store(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        with self.web_server(monkeypatch, 200, "<html><body>Welcome!</body></html>"):
            found = only_fault(self.check(site, "s3://images/x"))
        assert "not an S3 store" in found.what and "AWS_ENDPOINT_URL" in found.remedy

    def test_an_endpoint_that_redirects(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        with self.web_server(monkeypatch, 302, ""):
            found = only_fault(self.check(site, "s3://images/x"))
        assert "redirects" in found.what and "https" in found.remedy

    def test_a_store_that_is_full(self, site: Site, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        with self.front(s3, monkeypatch, Rule(fault=Fault.INTERNAL_ERROR, method="PUT")):
            found = only_fault(self.check(site, s3.uri))
        assert "cannot be written" in found.what and "log of the store" in found.remedy

    @contextmanager
    def web_server(self, monkeypatch: pytest.MonkeyPatch, status: int, page: str) -> Iterator[None]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "https://login.example/")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else page.encode())

            do_HEAD = do_GET  # noqa: N815 - the name is the server's

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
            threading.Thread(target=web.serve_forever, daemon=True).start()
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{web.server_port}")
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            monkeypatch.setenv("AWS_REGION", "us-east-1")
            yield
            web.shutdown()

    @contextmanager
    def front(self, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, rule: Rule) -> Iterator[None]:
        with S3Front(bucket.endpoint) as front:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", front.endpoint)
            front.place(rule)
            yield
