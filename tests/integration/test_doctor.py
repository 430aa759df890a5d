"""`clipfleet-worker doctor` finds what was planted, and names what helps; where all is well it says so."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import as_file, files
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from PIL import AvifImagePlugin

from clipfleet.redis.connection import connect
from clipfleet_worker.decode import codecs, fit
from clipfleet_worker.doctor import Check, Finding, Level, examine
from clipfleet_worker.doctor.all_checks import all_checks
from clipfleet_worker.settings import WorkerSettings
from tests.support.acl_users import make_users, url_of
from tests.support.loopback_site import LoopbackSite
from tests.support.s3 import S3Bucket
from tests.support.s3_front import Fault, Rule, S3Front

pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Site:
    """Everything as it should be."""

    redis_url: str
    folder: Path

    def checks(self, name: str, *outputs: str, **changes: Any) -> list[Check]:
        folder = str(self.folder)
        usual = {"redis_url": self.redis_url, "models": "demo", "file_roots": folder, "output_roots": folder}
        settings = WorkerSettings(**{**usual, **changes})
        return [check for check in all_checks(settings, {}, outputs) if check.name == name]


@pytest.fixture
def site(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    for name in [name for name in os.environ if name.startswith("CLIPFLEET_")]:
        monkeypatch.delenv(name)
    return Site(redis_url, tmp_path)


def check_fault(checks: list[Check], what: str, remedy: str, level: Level = Level.PROBLEM) -> Finding:
    """The one finding that is not fine says this."""
    (found,) = [finding for finding in examine(checks) if finding.level is not Level.OK]
    assert found.level is level
    assert what in found.what
    assert found.remedy and remedy in found.remedy
    return found


@pytest.mark.parametrize("has_extra", [True, False])
def test_whether_jobs_that_fill_a_store_are_finished_here(
    site: Site, monkeypatch: pytest.MonkeyPatch, has_extra: bool
) -> None:
    monkeypatch.setattr("clipfleet_worker.doctor.machine_check.has_store_extra", lambda: has_extra)

    (found,) = [one for one in examine(site.checks("machine")) if "fill a store" in one.what]

    assert found.level is Level.OK
    assert ("pip install 'clipfleet[store]'" in found.what) is not has_extra


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


class TestTheWholeCommand:
    def run(self, site: Site, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        ours = ("CLIPFLEET_", "AWS_")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "CLIPFLEET_REDIS_URL": site.redis_url,
            "CLIPFLEET_MODELS": "demo",
            "CLIPFLEET_FILE_ROOTS": str(site.folder),
            "CLIPFLEET_OUTPUT_ROOTS": str(site.folder),
            **changes,
        }
        command = [sys.executable, "-m", "clipfleet_worker", "doctor", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

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
        faults = {"REDIS_URL": "redis://127.0.0.1:1/0", "OUTPUT_ROOTS": missing, "REDIS": "x"}

        ended = self.run(site, **{f"CLIPFLEET_{name}": value for name, value in faults.items()})

        assert ended.returncode == 1
        assert ended.stdout.endswith("2 problems, 1 warning\n")
        for words in ("-> is it running", missing, "-> create it", "CLIPFLEET_REDIS is not a setting"):
            assert words in ended.stdout
        assert "Traceback" not in ended.stdout + ended.stderr

    def test_an_output_that_is_no_bucket(self, site: Site) -> None:
        ended = self.run(site, "--output", "results")

        assert ended.returncode == 2
        assert "CLIPFLEET_OUTPUT_ROOTS" in ended.stderr


class Case(NamedTuple):
    """A fault, and what is said of it."""

    check: str
    settings: Mapping[str, Any]
    what: str
    remedy: str
    level: Level = Level.PROBLEM
    patched: Mapping[str, Any] = MappingProxyType({})  # where the machine itself cannot be made so


FAULTS = {
    "a wrong password":
        Case("redis", {"redis_url": "redis://:secret@{address}/0"}, "login refused", "CLIPFLEET_REDIS_URL"),
    "a database that is not there":
        Case("redis", {"redis_url": "{redis}/99"}, "DB index", "CLIPFLEET_REDIS_URL"),
    "a server that is too old":
        Case("redis", {}, "6.0.16", "6.2", patched={
            "clipfleet_worker.doctor.redis_check._hello": lambda _: {"version": "6.0.16"}}),
    "a clock that is off":
        Case("redis", {}, "ahead of that of Redis", "NTP", Level.WARNING,
             {"redis.Redis.time": lambda _: (1_000_000_000, 0)}),
    "a broker behind sentinels that are not there":
        Case("broker", {"broker_url": "sentinel://:secret@127.0.0.1:1/ours"}, "No master found",
             "CLIPFLEET_BROKER_URL"),
    "a broker that is not there":
        Case("broker", {"broker_url": "amqp://me:secret@127.0.0.1:1//"}, "127.0.0.1:1",
             "CLIPFLEET_BROKER_URL"),
    "a missing folder to read":
        Case("folders", {"file_roots": "{folder}/missing"}, "missing", "CLIPFLEET_FILE_ROOTS"),
    "a missing folder to write":
        Case("folders", {"output_roots": "{folder}/missing"}, "missing", "CLIPFLEET_OUTPUT_ROOTS"),
    "an output that cannot be written":  # root may write everywhere but here
        Case("folders", {"output_roots": "/proc"}, "/proc", "write"),
    "a disk that is full":
        Case("folders", {}, "5 MiB", "space", Level.WARNING,
             {"shutil.disk_usage": lambda _: SimpleNamespace(free=5 << 20)}),
    "a host that is none of this machine":
        Case("machine", {"health_port": 8081, "health_host": "203.0.113.7"}, "203.0.113.7:8081",
             "CLIPFLEET_HEALTH_HOST"),
    "far too many threads":
        Case("machine", {"decode_threads": 100_000}, "CLIPFLEET_DECODE_THREADS", "", Level.WARNING),
    "few open files":
        Case("machine", {"total_connections": 100_000_000}, "files", "CLIPFLEET_TOTAL_CONNECTIONS",
             Level.WARNING),
    "more memory than there is":
        Case("machine", {"max_memory_bytes": 1 << 50}, "CLIPFLEET_MAX_MEMORY_BYTES", "lower", Level.WARNING),
    "no place for temporary files":
        Case("machine", {}, "temporary", "TMPDIR", patched={"tempfile.tempdir": "/proc"}),
    "a GPU that is not there":
        Case("device", {"device": "cuda:7"}, "cuda:7", "CLIPFLEET_DEVICE"),
    "a GPU that torch cannot use":
        Case("device", {}, "GPU", "CLIPFLEET_DEVICE=cpu", patched={
            "torch.cuda.is_available": lambda: False,
            "clipfleet_worker.process.device._NVIDIA_DRIVER": Path("/"),
            "clipfleet_worker.process.device._GPU_DRIVERS": (Path("/"),)}),
    "a precision that the device has not":
        Case("device", {"precision": "fp16", "device": "cpu"}, "fp16", "CLIPFLEET_PRECISION: use auto"),
    "a backend that is not installed":
        Case("device", {"backend": "openvino", "device": "cpu"}, "CLIPFLEET_BACKEND", ".[openvino]",
             patched={"clipfleet_worker.encode.backends.cpu_backends.find_spec": lambda name: None}),
    "an unknown model":
        Case("model", {"models": "ViT-B-33:datacomp_xl_s13b_b90k"}, "ViT-B-33", "models list"),
    "a model that is not on this machine":
        Case("model", {"models": "ViT-B-32:datacomp_xl_s13b_b90k"}, "not on this machine",
             "models pull ViT-B-32", Level.WARNING, {"huggingface_hub.constants.HF_HUB_CACHE": "/nowhere"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_with_its_remedy(site: Site, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    case = FAULTS[fault]
    redis = site.redis_url.removesuffix("/0")
    places = {"folder": site.folder, "redis": redis, "address": redis.rpartition("@")[2]}
    texts = {name: value.format(**places) for name, value in case.settings.items() if isinstance(value, str)}
    for name, value in case.patched.items():
        monkeypatch.setattr(name, value)

    checks = site.checks(case.check, **{**case.settings, **texts})
    found = check_fault(checks, case.what, case.remedy, case.level)

    assert "secret" not in found.what and "redis.connection" not in found.what


class TestRedis:
    @contextmanager
    def configured(self, site: Site, **changes: str) -> Iterator[None]:
        values = {name.replace("_", "-"): value for name, value in changes.items()}
        with connect(site.redis_url) as client:
            before = {name: client.config_get(name)[name] for name in values}
            try:
                for name, value in values.items():
                    client.config_set(name, value)
                yield
            finally:
                for name, value in before.items():
                    client.config_set(name, value)

    def test_append_only_file_is_off(self, site: Site) -> None:
        with self.configured(site, appendonly="no"):
            check_fault(site.checks("redis"), "AOF is off", "appendonly yes")

    @pytest.mark.parametrize(("limit", "level"), [("100mb", Level.PROBLEM), ("0", Level.WARNING)])
    def test_it_evicts(self, site: Site, limit: str, level: Level) -> None:
        with self.configured(site, maxmemory=limit, maxmemory_policy="allkeys-lru"):
            check_fault(site.checks("redis"), "allkeys-lru", "noeviction", level)

    def test_it_is_nearly_full(self, site: Site) -> None:
        with connect(site.redis_url) as client:
            client.setrange("job", 16 << 20, "x")  # much more than a connection takes
            used = client.info("memory")["used_memory"]
        with self.configured(site, maxmemory=str(int(used * 1.05))):
            check_fault(site.checks("redis"), "in use", "maxmemory", Level.WARNING)

    @pytest.mark.parametrize(
        ("name", "value", "said", "remedy"),
        [
            ("min_replicas_to_write", "1", "good replicas", "start its replicas"),
            ("maxmemory", "100kb", "used memory", "raise maxmemory"),
        ],
    )
    def test_it_takes_no_writes(self, site: Site, name: str, value: str, said: str, remedy: str) -> None:
        with self.configured(site, **{name: value}):
            found = list(examine(site.checks("redis")))
        (refused,) = [one for one in found if one.level is Level.PROBLEM]
        assert said in refused.what and remedy in refused.remedy
        with connect(site.redis_url) as client:
            assert not client.keys("clipfleet:doctor*")

    def test_a_replica(self, site: Site) -> None:
        with connect(site.redis_url) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
            try:
                check_fault(site.checks("redis"), "replica", "primary")
            finally:
                client.execute_command("REPLICAOF", "NO", "ONE")

    def test_a_user_who_lacks_a_command(self, site: Site) -> None:
        with connect(site.redis_url) as admin:
            url = url_of("worker", make_users(admin), site.redis_url)
            found = check_fault(site.checks("redis", redis_url=url), "INFO", "aof_enabled", Level.WARNING)
            admin.execute_command("ACL", "SETUSER", "clipfleet-worker", "-zadd", "-brpop")

            _, found = [one for one in examine(site.checks("redis", redis_url=url)) if one.level != "ok"]

        assert "BRPOP" in found.what and "ZADD" in found.what and "users.acl" in found.remedy


class TestMachine:
    @pytest.mark.parametrize("roots", ["file_roots", "output_roots"])
    def test_a_root_below_a_folder_that_may_not_be_entered(
        self, site: Site, roots: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed = site.folder / "closed"
        with closed_folder(monkeypatch, closed):
            check_fault(site.checks("folders", **{roots: f"{closed}/root"}), "is not readable", "chmod o+rx")

    def test_a_home_of_another_user(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        home = site.folder / "root"
        monkeypatch.setenv("HF_HOME", str(home / ".cache" / "huggingface"))
        with closed_folder(monkeypatch, home):
            check_fault(site.checks("machine"), "is not writable", "HF_HOME", Level.WARNING)

    def test_a_port_that_is_taken(self, site: Site) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            check_fault(site.checks("machine", health_port=port), str(port), "CLIPFLEET_HEALTH_PORT")

    def test_a_decoder_that_is_off(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        right = fit._fit_scaled

        def inverted(*given: Any) -> fit.DecodedImage:
            return replace(right(*given), pixels=255 - right(*given).pixels)

        monkeypatch.setattr(fit, "_fit_scaled", inverted)
        check_fault(site.checks("decode"), "grey levels", "simplejpeg")

    def test_a_pillow_without_avif(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
        check_fault(site.checks("decode"), "AVIF is not read", "pip install", Level.WARNING)

    def test_a_worker_without_pillow_heif_needs_nothing(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(codecs, "find_spec", lambda _: None)

        found = list(examine(site.checks("decode")))

        assert {finding.level for finding in found} == {Level.OK}
        assert "run `pip install -e '.[heif]'`" in found[1].what


class TestWeights:
    @pytest.fixture
    def weights(self, site: Site) -> Path:
        """Those of a copy of the demo model."""
        with as_file(files("clipfleet_worker") / "demo_model") as demo:
            shutil.copytree(demo, site.folder / "model")
        return site.folder / "model" / "open_clip_model.safetensors"

    def test_they_are_damaged(self, site: Site, weights: Path) -> None:
        weights.write_bytes(weights.read_bytes()[:100_000])
        folder = weights.parent
        check_fault(site.checks("model", models=f"local-dir:{folder}"), str(folder), "remove")

    def test_they_are_no_numbers(self, site: Site, weights: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
        save_file(tensors, weights)
        check_fault(site.checks("model", models=f"local-dir:{weights.parent}"), "nan", "remove")


CANNOT_WRITE = Rule(fault=Fault.ACCESS_DENIED, method="PUT")
# What is wrong with the store or the environment, and what is said of it
S3_FAULTS: dict[str, tuple[Rule | dict[str, str], str, str]] = {
    "a wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "", "AWS_SECRET_ACCESS_KEY"),
    "a store that is away": ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, "", "AWS_ENDPOINT_URL"),
    "a bucket that is read only": (CANNOT_WRITE, "cannot be written", ""),
    "a clock that is off": (Rule(fault=Fault.SKEWED), "RequestTimeTooSkewed", "clock"),
    "a store that is full":
        (Rule(fault=Fault.INTERNAL_ERROR, method="PUT"), "cannot be written", "log of the store"),
}  # fmt: skip


class TestS3:
    @pytest.mark.parametrize("fault", S3_FAULTS)
    def test_a_fault_is_found_with_its_remedy(
        self, site: Site, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        trouble, what, remedy = S3_FAULTS[fault]
        with S3Front(s3.endpoint) as front:
            if isinstance(trouble, Rule):
                front.place(trouble)
                trouble = {"AWS_ENDPOINT_URL_S3": front.endpoint}
            for name, value in trouble.items():
                monkeypatch.setenv(name, value)
            check_fault(site.checks("s3", s3.uri), what, remedy)

    def test_where_results_are_not_written_a_bucket_may_be_read_only(
        self, site: Site, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with S3Front(s3.endpoint) as front, front.broken_by(CANNOT_WRITE):
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", front.endpoint)
            checks = site.checks("s3", s3_buckets=s3.name)
            check_fault(checks, "cannot be written", "", Level.WARNING)

    def test_a_bucket_that_is_missing(self, site: Site, s3: S3Bucket) -> None:
        check_fault(site.checks("s3", "s3://no-such-bucket-here/x"), "NoSuchBucket", "create the bucket")

    def test_a_bucket_that_workers_refuse(self, site: Site, s3: S3Bucket) -> None:
        checks = site.checks("s3", f"{s3.uri}/x", s3_buckets=f"{s3.name}-other")
        check_fault(checks[:1], "CLIPFLEET_S3_BUCKETS", "")

    @pytest.mark.parametrize("status", [200, 302])
    def test_a_web_server(self, site: Site, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = b"<html><body>Welcome!</body></html>" if status == 200 else b""
                self.send_response(status)
                self.send_header("Location", "https://login.example/")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else page)

            do_HEAD = do_GET  # noqa: N815 - the name is the server's

            def log_message(self, *_: object) -> None:
                pass

        with LoopbackSite(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as web:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", web.url)
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
                monkeypatch.setenv(name, "us-east-1")
            said = ("not an S3 store", "AWS_ENDPOINT_URL") if status == 200 else ("redirects", "https")
            check_fault(site.checks("s3", "s3://images/x"), *said)
