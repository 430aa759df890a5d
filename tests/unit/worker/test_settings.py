"""Every setting from the environment: its meaning, its bounds, and the message about a wrong value."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from clipfleet.contract.jobs import DEFAULT_MODEL, Precision
from clipfleet.errors import UsageError
from clipfleet.settings import Settings, checked, doubtful_variables, split_commas
from clipfleet_gateway.settings import GatewaySettings
from clipfleet_worker.settings import WorkerSettings

DAY = 86_400

COUNTS = (
    "loaded_models", "max_image_bytes", "max_pixels", "max_decode_bytes", "host_connections",
    "total_connections", "slots", "items_in_flight", "bytes_in_flight",
)  # fmt: skip
DURATIONS = ("decode_seconds", "fetch_timeout_seconds", "chunk_deadline_seconds", "reconcile_seconds")
TTLS = ("job_ttl_seconds", "result_ttl_seconds")

BROKERS = (
    "redis://h/1", "rediss://:pw@h:6380/0", "redis+socket:///run/r", "amqp://u:pw@h//", "amqps://h",
    "sentinel://:pw@h1,h2:1/name/0", "sentinels://h/name",
)  # fmt: skip

# Name -> accepted texts, and what they mean.
GOOD: dict[str, dict[str, Any]] = {
    **{name: {"1": 1, "9": 9} for name in COUNTS},
    **{name: {"0.5": 0.5, str(DAY): float(DAY)} for name in DURATIONS},
    **{name: {"60": 60, str(3650 * DAY): 3650 * DAY} for name in TTLS},
    "redis_url": {"redis://:pw@host:6379/0": SecretStr("redis://:pw@host:6379/0")},
    "broker_url": {url: SecretStr(url) for url in BROKERS},
    "lease_seconds": {"1": 1.0, "2.5": 2.5, str(DAY): float(DAY)},
    "write_limit_seconds": {"0.5": 0.5, "3600": 3600.0},
    "quota_items": {"0": 0, "1000000": 1_000_000},
    "quota_bytes": {"0": 0, "1000000": 1_000_000},
    "models": {
        "demo": ("demo",),
        "demo, ViT-B-32 ,": ("demo", DEFAULT_MODEL),
        "hf-hub:org/name,local-dir:/m": ("hf-hub:org/name", "local-dir:/m"),
    },
    "precision": {"auto": Precision.AUTO, "bf16": Precision.BF16},
    "device": {"auto": "auto", "cpu": "cpu", "cuda": "cuda", "cuda:1": "cuda:1"},
    "backend": {"auto": "auto", "torch": "torch", "openvino": "openvino"},
    "batch_size": {"0": 0, "512": 512},
    "file_roots": {"/a": ("/a",), " /a , /b b,": ("/a", "/b b")},
    "output_roots": {"/a,/b": ("/a", "/b")},
    "s3_buckets": {"images, other.bucket": ("images", "other.bucket")},
    "allow_private": {"10.0.0.0/8, fd00::/8": ("10.0.0.0/8", "fd00::/8"), "192.168.1.7": ("192.168.1.7",)},
    "allow_ports": {"1,65535": ("1", "65535")},
    "contact": {"ops@example.org": "ops@example.org"},
    "robots": {"tag, txt": ("tag", "txt"), "txt": ("txt",), "none": ("none",)},
    "decode_memory_bytes": {"0": 0, "536870912": 536870912},
    "max_memory_bytes": {"0": 0, "8000000000": 8_000_000_000},
    "isolate_decode": {"1": True, "0": False},
    "fetch_attempts": {"1": 1, "20": 20},
    "decode_threads": {"0": 0, "4": 4},
    "drain_seconds": {"0": 0.0, str(DAY): float(DAY)},
    "outage_hours": {"0.5": 0.5, "87600": 87_600.0},
    "health_port": {"0": 0, "65535": 65535},
    "health_host": {"10.0.0.7": "10.0.0.7", "::1": "::1"},
    "celery_events": {"true": True, "0": False, "no": False},
    "ready_file": {"/run/ready": Path("/run/ready")},
}

# Name -> rejected texts, or pairs of such a text and words of the message.
BAD: dict[str, list[str | tuple[str, str]]] = {
    **{name: ["0", "-1", "1.5", "many"] for name in COUNTS},
    **{name: ["0", "-1", "inf", "nan", "1e300", str(DAY + 1), "soon"] for name in DURATIONS},
    **{name: ["59", "1.5", str(3650 * DAY + 1)] for name in TTLS},
    "redis_url": [],  # see TestUrls: redis-py judges when it connects
    "broker_url": [
        ("foo://host", "redis://, rediss://"), "host:6379", ("redis://host:port/0", "port"), "sentinel://host",
    ],
    "lease_seconds": ["0.9", "inf", "nan", "soon", str(DAY + 1)],
    "write_limit_seconds": ["0", "-1", "inf", "nan", "soon", "3601"],
    "quota_items": ["-1", "1.5", "many"],
    "quota_bytes": ["-1", "1.5", "1GB"],
    "models": [(",", "at least one"), ("ViT-L-14", "its weights"), ("demo,:x", "its weights")],
    "precision": [("BF16", "'bf16'"), "int8"],
    "device": [("gpu", "cuda:1"), "cuda:", "cuda:one", "cuda 1"],
    "backend": [("onnx", "'openvino'"), "OpenVINO"],
    "batch_size": ["-1", "1.5"],
    "file_roots": [("images", "not an absolute path"), "/a,~/b"],
    "output_roots": [("results", "not an absolute path")],
    "s3_buckets": [("s3://images", "not the name of a bucket"), ("a/b", "'a/b'")],
    "allow_private": [
        ("::ffff:10.0.0.0/104", "as an IPv4 network"), ("localhost", "'localhost'"),
        ("10.0.0.1/8", "host bits"), "10.0.0.0/33",
    ],
    "allow_ports": [("0", "not a port"), "65536", "http", "-1"],
    "contact": [],  # any text
    "robots": [("all", "tag,txt"), "none,tag", "TAG"],
    "decode_memory_bytes": [("536870911", "process itself needs"), "-1", "1.5", str(1 << 63)],
    "max_memory_bytes": ["-1", "1.5", "lots"],
    "isolate_decode": ["perhaps"],
    "fetch_attempts": ["0", "21", "1.5"],
    "decode_threads": ["-1", "1.5"],
    "drain_seconds": ["-1", "inf", "nan", str(DAY + 1)],
    "outage_hours": ["0", "-1", "inf", "nan", "87601"],
    "health_port": ["-1", "65536", "http"],
    "health_host": [],  # tests/unit/worker/status/test_health.py: the server judges
    "celery_events": ["maybe"],
    "ready_file": [],  # any path
}  # fmt: skip


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("CLIPFLEET_"):
            monkeypatch.delenv(name)


def variable(name: str) -> str:
    return f"CLIPFLEET_{name.upper()}"


@pytest.mark.parametrize("table", [GOOD, BAD], ids=["good", "bad"])
def test_every_setting_is_tested(table: dict[str, Any]) -> None:
    assert table.keys() == WorkerSettings.model_fields.keys()


@pytest.mark.parametrize("name", GOOD)
def test_good_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, value in GOOD[name].items():
        monkeypatch.setenv(variable(name), text)
        settings = checked(WorkerSettings)

        assert getattr(settings, name) == value
        assert settings.model_fields_set == {name}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_one_line_that_names_the_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in BAD[name]:
        text, words = case if isinstance(case, tuple) else (case, "")
        monkeypatch.setenv(variable(name), text)

        with pytest.raises(UsageError) as caught:
            checked(WorkerSettings)

        message = str(caught.value)
        assert message.startswith(f"invalid settings: {variable(name)}: "), text
        assert words in message
        assert "\n" not in message
        assert "Value error" not in message
        assert caught.value.__suppress_context__


def test_an_empty_variable_is_like_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WorkerSettings.model_fields:
        monkeypatch.setenv(variable(name), "")

    settings = checked(WorkerSettings)

    assert settings.model_fields_set == set()
    assert settings == WorkerSettings()


def test_all_wrong_values_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPFLEET_SLOTS", "0")
    monkeypatch.setenv("CLIPFLEET_DEVICE", "gpu")

    with pytest.raises(UsageError, match=r"settings: CLIPFLEET_DEVICE: .*; CLIPFLEET_SLOTS: "):
        checked(WorkerSettings)


def test_a_producer_ignores_settings_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPFLEET_SLOTS", "0")
    monkeypatch.setenv("CLIPFLEET_LEASE_SECONDS", "40")

    assert checked(Settings).lease_seconds == 40


def test_variables_of_other_programs_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere/0")
    monkeypatch.setenv("DEVICE", "gpu")

    assert checked(WorkerSettings).redis_url is None


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.lease_seconds = 5


class TestUrls:
    @pytest.mark.parametrize("require", [Settings.require_redis_url, Settings.require_broker_url])
    def test_without_a_redis_the_ways_to_one_are_named(self, require: Callable[[Settings], str]) -> None:
        with pytest.raises(UsageError, match=r"CLIPFLEET_REDIS_URL is not set.*clipfleet-worker up.*/env"):
            require(Settings())

    def test_the_broker_is_the_ledgers_redis_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CLIPFLEET_REDIS_URL", "redis://one/0")
        assert checked(Settings).require_broker_url() == "redis://one/0"

        monkeypatch.setenv("CLIPFLEET_BROKER_URL", "amqp://two//")
        assert checked(Settings).require_broker_url() == "amqp://two//"
        assert checked(Settings).require_redis_url() == "redis://one/0"

    def test_a_redis_that_celery_cannot_reach_needs_a_broker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CLIPFLEET_REDIS_URL", "unix:///run/redis.sock")
        assert checked(Settings).require_redis_url() == "unix:///run/redis.sock"

        with pytest.raises(UsageError, match=r"CLIPFLEET_BROKER_URL.*redis\+socket://"):
            checked(Settings).require_broker_url()

    @pytest.mark.parametrize("name", ["redis_url", "broker_url"])
    def test_a_password_shows_nowhere(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(variable(name), "redis://:s3cret@host/0")
        settings = checked(Settings)
        assert "s3cret" not in f"{settings!r} {settings} {settings.model_dump()}"

        monkeypatch.setenv("CLIPFLEET_BROKER_URL", "nonsense://:s3cret@host/0")
        with pytest.raises(UsageError) as caught:
            checked(Settings)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ("a", "b")), (" a , b ", ("a", "b")), ("a,,b,", ("a", "b")), ("a b", ("a b",)),
        (",", ()), ("", ()), (("a, b",), ("a, b",)),
    ],
)  # fmt: skip
def test_blanks_and_empty_parts_of_lists_are_left_out(text: object, parts: tuple[str, ...]) -> None:
    assert split_commas(text) == parts


def test_networks_and_ports_are_parsed_for_the_address_guard() -> None:
    settings = WorkerSettings(allow_private=("10.0.0.0/8",), allow_ports=("8080",))

    assert settings.private_networks == (ipaddress.ip_network("10.0.0.0/8"),)
    assert settings.ports == {8080}
    assert (WorkerSettings().private_networks, WorkerSettings().ports) == ((), set())


class TestDoubtfulVariables:
    def doubtful(self, *names: str) -> tuple[list[tuple[str, str | None]], ...]:
        """What a producer and a worker doubt."""
        programs: tuple[tuple[type[Settings], bool], ...] = ((Settings, False), (WorkerSettings, True))
        return tuple(list(doubtful_variables(model, names, has_all=has_all)) for model, has_all in programs)

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("CLIPFLEET_REDIS_ULR", "CLIPFLEET_REDIS_URL"),
            ("CLIPFLEET_REDISURL", "CLIPFLEET_REDIS_URL"),
            ("CLIPFLEET_REDIS", "CLIPFLEET_REDIS_URL"),
            ("clipfleet_redis_uri", "CLIPFLEET_REDIS_URL"),
            ("CLIPFLEET_BROKER", "CLIPFLEET_BROKER_URL"),
            ("CLIPFLEET_LEASE", "CLIPFLEET_LEASE_SECONDS"),
            ("CLIPFLEET_LEESE_SECONDS", "CLIPFLEET_LEASE_SECONDS"),
        ],
    )
    def test_every_program_suggests_the_name(self, name: str, meant: str) -> None:
        assert self.doubtful(name) == ([(name, meant)], [(name, meant)])

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("CLIPFLEET_FILE_ROOT", "CLIPFLEET_FILE_ROOTS"),
            ("CLIPFLEET_OUTPUTROOTS", "CLIPFLEET_OUTPUT_ROOTS"),
            ("CLIPFLEET_MODEL", "CLIPFLEET_MODELS"),
            ("CLIPFLEET_DRAIN", "CLIPFLEET_DRAIN_SECONDS"),
            ("CLIPFLEET_FROBNICATE", None),
            ("CLIPFLEET_", None),
        ],
    )
    def test_a_worker_reports_every_unknown_name(self, name: str, meant: str | None) -> None:
        assert self.doubtful(name) == ([], [(name, meant)])

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("CLIPFLEET_GATEWAY_HOSTS", ""),
            ("CLIPFLEET_GATEWAY_OUTPT", "CLIPFLEET_GATEWAY_OUTPUT"),
            ("CLIPFLEET_GATEWAY_FROBNICATE", None),
        ],
    )
    def test_those_of_the_gateway_are_left_to_it(self, name: str, meant: str | None) -> None:
        assert self.doubtful(name) == ([], [])
        judged = list(doubtful_variables(GatewaySettings, [name], has_all=False))
        assert judged == ([] if meant == "" else [(name, meant)])

    def test_neither_doubts_the_settings_of_a_worker_or_variables_of_other_programs(self) -> None:
        others = [
            "PATH", "REDIS_ULR", "XCLIPFLEET_REDIS_ULR", "CLIPFLEET_REDIS_SERVICE_HOST",
            "CLIPFLEET_REDIS_SERVICE_PORT_REDIS", "CLIPFLEET_REDIS_PORT",
            "CLIPFLEET_REDIS_PORT_6379_TCP_ADDR",
        ]  # fmt: skip

        assert self.doubtful(*map(variable, WorkerSettings.model_fields), *others) == ([], [])
