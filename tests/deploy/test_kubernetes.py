"""What kustomize makes of ops/kubernetes fits the schemas of Kubernetes and KEDA, and the code's settings."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from clipfleet_gateway.server import LAST_ANSWERS_SECONDS
from clipfleet_gateway.settings import GatewaySettings
from clipfleet_gateway.web.guards import OPEN
from clipfleet_worker.machine.plan import Machine, plan_processes
from clipfleet_worker.process.watchdog import LOAD_LIMIT_SECONDS
from clipfleet_worker.settings import WorkerSettings
from tests.conftest import service_is_missing
from tests.support.documents import ROOT

OVERLAYS = ("cpu", "gpu", "gateway")
KUBERNETES = "1.33"
KEDA = "@kubernetes-models/keda@0.4.2"
SETTINGS = {
    f"CLIPFLEET_{name.upper()}": field
    for name, field in {**WorkerSettings.model_fields, **GatewaySettings.model_fields}.items()
}


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return built(request.param)


@pytest.fixture(scope="module")
def with_gateway() -> list[dict[str, Any]]:
    return built("gateway")


def built(overlay: str) -> list[dict[str, Any]]:
    if shutil.which("kustomize") is None:
        service_is_missing("kustomize is not installed")
    folder = ROOT / "ops" / "kubernetes" / "overlays" / overlay
    text = subprocess.run(["kustomize", "build", folder], capture_output=True, text=True, check=True).stdout
    return [one for one in yaml.safe_load_all(text) if one]


def of_kind(objects: list[dict[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    return (one for one in objects if one["kind"] == kind)


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    controllers = [*of_kind(objects, "Deployment"), *of_kind(objects, "StatefulSet")]
    return {one["metadata"]["name"]: one["spec"]["template"] for one in controllers}


def settings_of(objects: list[dict[str, Any]]) -> dict[str, str]:
    (found,) = [
        one["data"] for one in of_kind(objects, "ConfigMap") if "CLIPFLEET_MODELS" in one.get("data", {})
    ]
    return dict(found)


def test_they_fit_the_schemas_of_kubernetes(objects: list[dict[str, Any]]) -> None:
    kinds = {one["kind"] for one in objects}
    assert kinds >= {"Deployment", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy", "ScaledObject"}
    for one in objects:
        if one["kind"] != "ScaledObject":
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_scaling_fits_the_schema_of_keda(objects: list[dict[str, Any]], tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        service_is_missing("npm is not installed")
    subprocess.run(["npm", "install", "--silent", "--no-save", "--prefix", tmp_path, KEDA], check=True)

    def wrong(scaled: list[dict[str, Any]]) -> str:
        script = Path(__file__).with_name("keda.mjs")
        return subprocess.run(
            ["node", script, tmp_path], input=json.dumps(scaled), capture_output=True, text=True, check=True
        ).stdout

    scaled = list(of_kind(objects, "ScaledObject"))
    assert scaled
    assert wrong(scaled) == ""
    scaled[0]["spec"]["triggers"][0]["metadata"]["threshold"] = 64
    assert "must be string" in wrong(scaled)


def test_scaling_asks_for_metrics_that_exist(objects: list[dict[str, Any]]) -> None:
    (scaled,) = of_kind(objects, "ScaledObject")
    assert scaled["spec"]["minReplicaCount"] == 0
    assert scaled["spec"]["scaleTargetRef"]["name"] in pods(objects)
    described = (ROOT / "docs" / "metrics.md").read_text()
    for trigger in scaled["spec"]["triggers"]:
        names = re.findall(r"\bclipfleet_\w+", trigger["metadata"]["query"])
        assert names
        assert all(f"`{name}`" in described for name in names)


def test_every_variable_is_a_setting_with_a_value_it_takes(objects: list[dict[str, Any]]) -> None:
    given = settings_of(objects)
    assert set(given) <= set(SETTINGS)
    WorkerSettings(**{name.removeprefix("CLIPFLEET_").lower(): value for name, value in given.items()})
    variables = {
        entry["name"]
        for pod in pods(objects).values()
        for container in pod["spec"]["containers"]
        for entry in container.get("env", ())
    }
    assert {name for name in variables if name.startswith("CLIPFLEET_")} <= set(SETTINGS)


def test_probes_and_scrapes_ask_where_the_worker_answers(objects: list[dict[str, Any]]) -> None:
    port = int(settings_of(objects)["CLIPFLEET_HEALTH_PORT"])
    for name in ("worker", "exporter"):
        (container,) = pods(objects)[name]["spec"]["containers"]
        assert container["ports"][0] == {"name": "status", "containerPort": port}
        probes = [container[probe]["httpGet"] for probe in ("livenessProbe", "readinessProbe")]
        assert all(probe["port"] == "status" and probe["path"] in ("/healthz", "/readyz") for probe in probes)
        assert pods(objects)[name]["metadata"]["annotations"]["prometheus.io/port"] == str(port)


def test_a_worker_has_time_to_drain(objects: list[dict[str, Any]]) -> None:
    drain_seconds = float(settings_of(objects)["CLIPFLEET_DRAIN_SECONDS"])
    assert pods(objects)["worker"]["spec"]["terminationGracePeriodSeconds"] >= drain_seconds + 10


def test_pods_have_least_rights(objects: list[dict[str, Any]]) -> None:
    for pod in pods(objects).values():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("address", [
    "169.254.169.254", "fd00:ec2::254", "10.0.0.1", "172.20.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1",
    "::1", "::ffff:169.254.169.254", "fe80::1", "64:ff9b::a9fe:a9fe",
])  # fmt: skip
def test_workers_reach_no_address_inside(objects: list[dict[str, Any]], address: str) -> None:
    assert not reaches(objects, address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_workers_reach_public_addresses(objects: list[dict[str, Any]], address: str) -> None:
    assert reaches(objects, address)


def reaches(objects: list[dict[str, Any]], address: str) -> bool:
    """Whether some policy lets a pod go to an address; the default denies all."""
    policies = list(of_kind(objects, "NetworkPolicy"))
    assert any(
        one["spec"]["podSelector"] == {} and one["spec"]["policyTypes"] == ["Ingress", "Egress"]
        and "egress" not in one["spec"]
        for one in policies
    )  # fmt: skip
    blocks = [
        peer["ipBlock"]
        for one in policies
        for rule in one["spec"].get("egress", ())
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    where = ip_address(address)
    return any(
        where in ip_network(block["cidr"]) and not any(where in ip_network(cut) for cut in block["except"])
        for block in blocks
    )


def test_gpu_workers_have_a_gpu_each_and_may_be_spot() -> None:
    patch = yaml.safe_load((ROOT / "ops" / "kubernetes" / "overlays" / "gpu" / "gpu.yaml").read_text())
    spec = patch["spec"]["template"]["spec"]
    (worker,) = spec["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert any("spot" in toleration["key"] for toleration in spec["tolerations"])


def test_each_process_of_a_gpu_worker_has_a_port_that_prometheus_may_ask() -> None:
    overlays = ROOT / "ops" / "kubernetes" / "overlays"
    patch = yaml.safe_load((overlays / "gpu" / "gpu.yaml").read_text())
    (worker,) = patch["spec"]["template"]["spec"]["containers"]
    cores, memory = (
        int(re.sub(r"\D", "", worker["resources"]["limits"][what])) for what in ("cpu", "memory")
    )
    assert worker["command"] == ["clipfleet-worker", "run", "--devices", "all"]

    shares = plan_processes("all", "auto", Machine((80 << 30,), cores, memory << 30))

    first, *_ = ports = [port["containerPort"] for port in worker["ports"]]
    assert ports == [first + share.number for share in shares]
    policies = yaml.safe_load_all((overlays.parent / "base" / "network-policy.yaml").read_text())
    (asked,) = [rule for one in policies for rule in one["spec"].get("ingress", ())]
    (allowed,) = asked["ports"]
    assert (allowed["port"], allowed["endPort"]) == (first, first + 7)  # at most eight, see process_plan


def test_redis_is_full_before_the_kernel_kills_it(objects: list[dict[str, Any]]) -> None:
    (redis,) = pods(objects)["redis"]["spec"]["containers"]
    most_mebibytes = int(redis["args"][redis["args"].index("--maxmemory") + 1].removesuffix("mb"))
    assert redis["resources"]["limits"]["memory"] == "2Gi"
    assert most_mebibytes <= 0.75 * 2048


def test_keda_keeps_workers_while_prometheus_knows_nothing(objects: list[dict[str, Any]]) -> None:
    (scaled,) = of_kind(objects, "ScaledObject")
    assert scaled["spec"]["triggers"][0]["metadata"]["ignoreNullValues"] == "false"


def test_a_worker_may_start_for_as_long_as_a_model_may_load(objects: list[dict[str, Any]]) -> None:
    (worker,) = pods(objects)["worker"]["spec"]["containers"]
    probe = worker["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > LOAD_LIMIT_SECONDS


def test_the_gateway_has_probes_that_need_no_key(with_gateway: list[dict[str, Any]]) -> None:
    (gateway,) = pods(with_gateway)["gateway"]["spec"]["containers"]
    assert gateway["ports"] == [{"name": "http", "containerPort": 8080}]
    probes = {name: gateway[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"
    }  # fmt: skip
    assert {probe["path"] for probe in probes.values()} | {"/metrics"} <= OPEN
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert pods(with_gateway)["gateway"]["metadata"]["annotations"]["prometheus.io/port"] == "8080"


def test_replicas_of_the_gateway_are_replaced_one_by_one_and_end_what_they_have_begun(
    with_gateway: list[dict[str, Any]],
) -> None:
    (gateway,) = [one for one in of_kind(with_gateway, "Deployment") if one["metadata"]["name"] == "gateway"]
    assert gateway["spec"]["replicas"] == 2
    assert gateway["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    pod = gateway["spec"]["template"]["spec"]
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pause + LAST_ANSWERS_SECONDS
    (budget,) = [
        one for one in of_kind(with_gateway, "PodDisruptionBudget") if one["metadata"]["name"] == "gateway"
    ]
    assert (
        budget["spec"]["selector"]["matchLabels"].items()
        <= gateway["spec"]["selector"]["matchLabels"].items()
    )


def test_the_gateway_is_reached_by_the_names_of_its_service(with_gateway: list[dict[str, Any]]) -> None:
    (service,) = [one for one in of_kind(with_gateway, "Service") if one["metadata"]["name"] == "gateway"]
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (80, "http")
    labels = pods(with_gateway)["gateway"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    (given,) = [
        one["data"]
        for one in of_kind(with_gateway, "ConfigMap")
        if "CLIPFLEET_GATEWAY_OUTPUT" in one.get("data", {})
    ]
    namespace = service["metadata"]["namespace"]
    names = given["CLIPFLEET_GATEWAY_HOSTS"].split(",")
    assert {"gateway", f"gateway.{namespace}.svc.cluster.local"} <= set(names)
    assert given["CLIPFLEET_GATEWAY_OUTPUT"].startswith("s3://")
    assert set(given) <= set(SETTINGS)


def test_no_log_of_the_cluster_has_a_key(with_gateway: list[dict[str, Any]]) -> None:
    (gateway,) = pods(with_gateway)["gateway"]["spec"]["containers"]
    assert "--no-first-key" in gateway["command"]


def test_the_gateway_is_a_producer_for_redis() -> None:
    script = ROOT / "ops" / "kubernetes" / "components" / "redis" / "make-secret.sh"
    made = subprocess.run(["sh", script], capture_output=True, text=True, check=True).stdout
    secrets = {one["metadata"]["name"]: one["stringData"] for one in yaml.safe_load_all(made)}
    users = {
        name: secrets[name]["CLIPFLEET_REDIS_URL"].split(":")[1]
        for name in ("clipfleet", "clipfleet-gateway")
    }
    assert users == {"clipfleet": "//clipfleet-worker", "clipfleet-gateway": "//clipfleet-producer"}
    (gateway,) = pods(built("gateway"))["gateway"]["spec"]["containers"]
    given = [one["secretRef"]["name"] for one in gateway["envFrom"] if "secretRef" in one]
    assert given == ["clipfleet", "clipfleet-gateway"]  # of a variable that both have, the last one counts


def test_the_gateway_is_reached_at_its_port_and_reaches_names_redis_and_public_stores(
    with_gateway: list[dict[str, Any]],
) -> None:
    labels = pods(with_gateway)["gateway"]["metadata"]["labels"]
    policies = [
        one["spec"]
        for one in of_kind(with_gateway, "NetworkPolicy")
        if one["spec"]["podSelector"].get("matchLabels", {"": ""}).items() <= labels.items()
    ]
    rules = [rule for one in policies for rule in one.get("ingress", ())]
    assert [port for rule in rules for port in rule["ports"]] == [{"protocol": "TCP", "port": 8080}]
    leads_to = {
        port["port"]: next(iter(rule["to"][0]))
        for one in policies
        for rule in one.get("egress", ())
        for port in rule["ports"]
    }
    assert leads_to == {53: "namespaceSelector", 6379: "podSelector", 443: "ipBlock"}
