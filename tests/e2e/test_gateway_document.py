"""The OpenAPI document is valid; each documented field is served, and each served field documented."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import numpy as np
import pytest
from openapi_spec_validator import validate

from clipfleet.contract.heads import HeadKind
from clipfleet.heads.files import make_head
from tests.support.cluster import Cluster
from tests.support.documented import Documented
from tests.support.gateway_process import GatewayProcess, gateway_command, made_key
from tests.support.heads import head_of
from tests.support.images import encoded, make_image, write_images
from tests.support.metrics_page import metric_values
from tests.support.waiting import wait_until

IMAGE = "data:image/jpeg;base64," + base64.b64encode(encoded(make_image(1))).decode()
ENDED = {"completed", "completed_with_errors", "failed", "cancelled", "expired"}
WARM = {
    "kind": "multi", "none": False, "templates": ["a {} thing"], "background": ["a thing"], "slope": 1.0,
    "labels": [
        {
            "name": "red", "not": ["a pink thing"], "threshold": 0.5, "group": "colours", "intercept": 0.0,
            "promise": {"claim": "precision", "value": 0.9},
        },
        {"name": "blue", "intercept": 0.0},
    ],
    "certificates": [
        {
            "label": "red", "threshold": 0.5, "promise": {"claim": "precision", "value": 0.9},
            "confidence": 0.95, "labels_jointly": 1, "looks": [{"marks": 60, "wrong": 0}],
            "verdict": "certified", "output": "results", "job_id": "night", "model_fingerprint": "0" * 16,
            "label_set_hash": "0" * 16, "population": "0" * 16, "at": "2026-12-01T00:00:00Z",
        }
    ],
}  # fmt: skip
# Fields of answers that no exchange here can fill.
NEVER_FILLED = {
    ("Batch", "usage"): "always null",
    ("Batch", "expired_at"): "takes a day",
}


class Caller:
    """Sends requests with a key, and has each exchange checked."""

    def __init__(self, url: str, token: str, documented: Documented) -> None:
        self._address = url.removeprefix("http://")
        self._token = token
        self._documented = documented

    def ask(
        self, method: str, target: str, body: object = None, *, expect: int = 200, form: Any = None,
        token: str | None = None, **headers: str,
    ) -> Any:  # fmt: skip
        """The answer, parsed if it is JSON."""
        data, kind = _written(body, form)
        connection = HTTPConnection(self._address, timeout=120)
        try:
            sent = {"Authorization": f"Bearer {self._token if token is None else token}", **headers}
            connection.request(method, target, data, sent | ({"Content-Type": kind} if kind else {}))
            answer = connection.getresponse()
            found, content_type = answer.read(), answer.headers["Content-Type"]
        finally:
            connection.close()
        assert answer.status == expect, (method, target, answer.status, found[:2000])
        self._documented.exchanged(method, target, answer.status, content_type, found, sent=body, form=form)
        return json.loads(found) if content_type.partition(";")[0] == "application/json" else found

    def upload(self, lines: list[dict[str, Any]], **more: str) -> dict[str, Any]:
        """A file of requests."""
        content = "".join(json.dumps(line) + "\n" for line in lines)
        found: dict[str, Any] = self.ask(
            "POST", "/v1/files", form={"purpose": "batch", **more, "file": ("lines.jsonl", content.encode())}
        )
        return found

    def ended(self, begun: Mapping[str, Any], kind: str = "batches") -> dict[str, Any]:
        """A batch or a job at its end."""
        found: list[dict[str, Any]] = []

        def has_ended() -> bool:
            found.append(self.ask("GET", f"/v1/{kind}/{begun['id']}"))
            return found[-1]["status" if kind == "batches" else "state"] in ENDED

        wait_until(has_ended, f"{begun['id']} has ended", 120)
        return found[-1]


def _written(body: object, form: Mapping[str, Any] | None) -> tuple[bytes | None, str | None]:
    if form is None:
        return (None, None) if body is None else (json.dumps(body).encode(), "application/json")
    border, data = uuid4().hex, b""
    for name, value in form.items():
        file, content = value if isinstance(value, tuple) else (None, value.encode())
        more = f'; filename="{file}"' if file else ""
        data += f'--{border}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
        data += content + b"\r\n"
    return data + f"--{border}--\r\n".encode(), f"multipart/form-data; boundary={border}"


def line(custom_id: str, body: Any, url: str = "/v1/embeddings") -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write_policy(folder: Path) -> Path:
    """A policy that flags all images, by a label and by a head whose number is 0 for all."""
    head = head_of(128, 1, kind=HeadKind.REGRESS)
    shapes = zip(head.tensor_names, [(128, 1)], strict=True)
    numbers = {
        name: np.zeros(shape, np.float32)
        for (weight, bias), (inputs, outputs) in shapes
        for name, shape in ((weight, (outputs, inputs)), (bias, (outputs,)))
    }
    (folder / "taste.head.safetensors").write_bytes(make_head(head, numbers).data)
    file = folder / "policy.json"
    rules = [
        {"name": "sure", "when": {"label": "red", "at_least": 0.0}, "action": "flag"},
        {"name": "taste", "when": {"head": "taste", "below": 1}, "action": "review"},
    ]
    things = {"kind": "multi", "labels": ["red", "blue"]}
    policy = {
        "name": "uploads", "model": "demo", "label_sets": {"things": things}, "rules": rules,
        "heads": ["taste.head.safetensors"],
    }  # fmt: skip
    file.write_text(json.dumps(policy))
    return file


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, GatewayProcess, str]]:
    """A gateway without a worker, and a key."""
    folder = tmp_path_factory.mktemp("document")
    with Cluster(folder) as cluster:
        environment = cluster.environment() | {"CLIPFLEET_GATEWAY_OUTPUT": str(folder / "gateway")}
        token = made_key(environment, "mine", "--source", str(folder / "photos"))
        added = gateway_command(environment, "policies", "add", str(write_policy(folder)))
        assert added.returncode == 0, added.stderr
        with GatewayProcess(environment, folder) as gateway:
            yield cluster, gateway, token
            assert gateway.terminate() == 0, gateway.log()


@pytest.fixture(scope="module")
def documented(started: tuple[Cluster, GatewayProcess, str]) -> Documented:
    """After an exchange for every operation, and more."""
    cluster, gateway, token = started
    connection = HTTPConnection(gateway.url.removeprefix("http://"), timeout=60)
    connection.request("GET", "/openapi.json")
    documented = Documented(json.loads(connection.getresponse().read()))
    connection.close()
    caller = Caller(gateway.url, token, documented)
    about(caller)
    files(caller)
    without_a_worker(caller)
    cluster.start_worker()
    embeddings(caller)
    zero_shot(caller)
    batches(caller)
    jobs(caller, cluster.folder / "photos")
    moderations(caller)
    return documented


def about(caller: Caller) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        caller.ask("GET", path, token="")
    caller.ask("GET", "/v1/models", token="no key", expect=401)
    caller.ask("GET", "/v1/models", Host="evil.example", expect=421)


def files(caller: Caller) -> None:
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    first = caller.upload([line("a", {})], **expiry)
    second = caller.upload([line("b", {})])
    query = urlencode({"limit": 1, "order": "asc", "purpose": "batch", "after": first["id"]})
    listed = caller.ask("GET", f"/v1/files?{query}")
    assert [one["id"] for one in listed["data"]] == [second["id"]]
    caller.ask("GET", f"/v1/files/{first['id']}")
    assert b'"custom_id": "a"' in caller.ask("GET", f"/v1/files/{first['id']}/content")
    for one in (first, second):
        caller.ask("DELETE", f"/v1/files/{one['id']}")
    caller.ask("GET", f"/v1/files/{first['id']}", expect=404)
    caller.ask("POST", "/v1/files", form={"purpose": "fine-tune", "file": ("a", b"x")}, expect=400)


def without_a_worker(caller: Caller) -> None:
    file = caller.upload([line(str(number), {"model": "demo", "input": "a cat"}) for number in range(3)])
    expiry = {"anchor": "created_at", "seconds": 3600}
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = caller.ask(
        "POST", "/v1/batches", wanted | {"metadata": {"of": "a test"}, "output_expires_after": expiry}
    )
    wait_until(
        lambda: caller.ask("GET", f"/v1/batches/{batch['id']}")["status"] == "in_progress", "it waits", 60
    )
    caller.ask("POST", f"/v1/batches/{batch['id']}/cancel")
    assert caller.ended(batch)["status"] == "cancelled"
    wrong = caller.upload([line("a", {"model": "demo", "input": 5})])
    failed = caller.ended(caller.ask("POST", "/v1/batches", wanted | {"input_file_id": wrong["id"]}))
    assert failed["errors"]["data"][0]["line"] == 1
    listed = caller.ask("GET", f"/v1/batches?{urlencode({'limit': 1, 'after': failed['id']})}")
    assert [one["id"] for one in listed["data"]] == [batch["id"]]
    caller.ask("GET", "/v1/batches/batch_none", expect=404)


def embeddings(caller: Caller) -> None:
    wait_until(lambda: len(caller.ask("GET", "/v1/models")["data"]) == 2, "the worker serves its model", 30)
    model, policy = caller.ask("GET", "/v1/models")["data"]
    assert policy["owned_by"] == "policy"
    caller.ask("GET", f"/v1/models/{model['id']}")
    unknown = caller.ask("GET", "/v1/models/none", expect=404)["error"]
    assert (
        unknown == caller.ask("POST", "/v1/embeddings", {"model": "none", "input": "a"}, expect=404)["error"]
    )
    asked = {"model": "demo", "encoding_format": "float", "user": "me"}
    found = caller.ask("POST", "/v1/embeddings", asked | {"input": [{"image": IMAGE}, {"text": "a cat"}]})
    length = len(found["data"][0]["embedding"])
    images = {"input": IMAGE, "modality": "image", "dimensions": length, "encoding_format": "base64"}
    assert isinstance(caller.ask("POST", "/v1/embeddings", asked | images)["data"][0]["embedding"], str)
    for part in ({"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": "a cat"}):
        caller.ask("POST", "/v1/embeddings", asked | {"messages": [{"role": "user", "content": [part]}]})
    caller.ask("POST", "/v1/embeddings", asked | {"input": ["a", {"image": "."}]}, expect=403)
    caller.ask("POST", "/v1/embeddings", asked | {"input": []}, expect=400)


def zero_shot(caller: Caller) -> None:
    parameters = {"candidate_labels": ["a cat", "a dog"], "hypothesis_template": "a photo of {}"}
    asked = {"model": "demo", "inputs": {"image": IMAGE}, "parameters": parameters}
    assert len(caller.ask("POST", "/v1/zero-shot", asked)) == 2
    caller.ask("POST", "/v1/zero-shot", asked | {"inputs": "no image"}, expect=400)


def batches(caller: Caller) -> None:
    good = {"model": "demo", "input": [{"image": IMAGE}]}
    bad = {"model": "demo", "input": [{"image": "data:image/jpeg;base64,AAAA"}]}
    file = caller.upload([line("good", good), line("bad", bad)])
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = caller.ended(caller.ask("POST", "/v1/batches", wanted))
    assert batch["status"] == "completed"
    for name, custom_id in (("output_file_id", "good"), ("error_file_id", "bad")):
        (found,) = caller.ask("GET", f"/v1/files/{batch[name]}/content").splitlines()
        assert json.loads(found)["custom_id"] == custom_id


def jobs(caller: Caller, folder: Path) -> None:
    folder.mkdir()
    write_images(folder / "images", 2)
    (folder / "list.csv").write_text("where,name,set\n000000.jpg,a,warm\n000001.jpg,b,cold\nnone.jpg,c,all\n")
    of_a_list = {
        "task": "classify", "model": "demo", "source": str(folder / "list.csv"), "label_set_column": "set",
        "url_column": "where", "id_column": "name", "base_uri": f"{folder}/images/",
        "label_sets": {
            "warm": WARM, "cold": {"labels": ["ice", "snow"]}, "all": {"preset": "imagenet1k-simple"},
        },
    }  # fmt: skip
    first = caller.ended(caller.ask("POST", "/v1/jobs", of_a_list), "jobs")
    assert (first["state"], first["ok"], first["failed"]) == ("completed_with_errors", 2, 1), json.dumps(
        first
    )
    query = urlencode({"limit": 2, "failed": "true", "label": "red"})
    assert caller.ask("GET", f"/v1/jobs/{first['id']}/rows?{query}") == b""
    of_items = {
        "task": "classify", "model": "demo", "items": [IMAGE, {"url": IMAGE, "note": "second"}],
        "labels": ["red", "blue"], "templates": ["a {} thing"], "multi": True, "none": False, "top_k": 1,
        "precision": "fp32", "decode": "exact", "exif": "apply", "sample": 2, "embedding": True,
        "vector_type": "float32", "format": "jsonl", "max_error_rate": 0.5,
    }  # fmt: skip
    second = caller.ended(caller.ask("POST", "/v1/jobs", of_items), "jobs")
    rows = caller.ask("GET", f"/v1/jobs/{second['id']}/rows").splitlines()
    assert [json.loads(row)["note"] for row in rows] == [None, "second"]
    texts = {"task": "embed_text", "model": "demo", "items": [{"words": "a cat"}], "text_column": "words"}
    third = caller.ended(caller.ask("POST", "/v1/jobs", texts), "jobs")
    listed = caller.ask("GET", f"/v1/jobs?{urlencode({'limit': 1, 'after': third['id']})}")
    assert [job["id"] for job in listed["data"]] == [second["id"]]
    (folder / "denied.csv").write_text("url\ns3://photos/a.jpg\n")
    denied = {"task": "embed", "model": "demo", "source": str(folder / "denied.csv")}
    assert caller.ended(caller.ask("POST", "/v1/jobs", denied), "jobs")["error"]
    caller.ask("POST", f"/v1/jobs/{first['id']}/cancel")
    caller.ask("GET", "/v1/jobs/job_none", expect=404)


def moderations(caller: Caller) -> None:
    part = {"type": "image_url", "image_url": {"url": IMAGE}}
    for given in (part, [part]):
        body = caller.ask("POST", "/v1/moderations", {"model": "uploads", "input": given})
    (result,) = body["results"]
    assert (result["decision"], result["flagged"]) == ("flag", True)
    assert {one["rule"] for one in result["reasons"]} == {"sure", "taste"}
    path = f"/v1/decisions/{result['decision_id']}"
    verdict = {
        "verdict": "overturned", "labels": {"things/red": "no"}, "by": "ann", "note": "blue", "appeal": True,
    }  # fmt: skip
    caller.ask("POST", f"{path}/verdict", verdict)
    found = caller.ask("GET", path)
    assert found["policy"]["name"] == "uploads" and len(found["verdicts"]) == 1
    assert isinstance(found["heads"]["taste"], float)
    bad = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAAA"}}
    (result,) = caller.ask("POST", "/v1/moderations", {"input": [bad]})["results"]
    assert (result["decision"], result["error"]["code"]) == ("undecided", "not_an_image")
    caller.ask("GET", f"/v1/decisions/{result['decision_id']}")
    caller.ask("POST", "/v1/moderations", {"input": "a text"}, expect=400)
    caller.ask("POST", "/v1/moderations", {"model": "none", "input": [part]}, expect=404)
    job = caller.ask("POST", "/v1/jobs", {"task": "moderate", "policy": "uploads", "items": [IMAGE]})
    assert caller.ended(job, "jobs")["policy"].startswith("uploads@")
    (row,) = caller.ask("GET", f"/v1/jobs/{job['id']}/rows").splitlines()
    assert json.loads(row)["decision"] == "flag"
    assert caller.ask("GET", f"/v1/decisions/{json.loads(row)['decision_id']}")["job_id"] == job["id"]
    lines = [line(name, {"input": [one]}, "/v1/moderations") for name, one in (("a", part), ("b", bad))]
    wanted = {"endpoint": "/v1/moderations", "completion_window": "24h"}
    asked = wanted | {"input_file_id": caller.upload(lines)["id"]}
    batch = caller.ended(caller.ask("POST", "/v1/batches", asked))
    assert (batch["status"], batch["model"], batch["error_file_id"]) == ("completed", "uploads", None)
    content = caller.ask("GET", f"/v1/files/{batch['output_file_id']}/content").splitlines()
    bodies = [json.loads(one)["response"]["body"] for one in content]
    assert [body["results"][0]["decision"] for body in bodies] == ["flag", "undecided"]


def test_the_document_is_valid(started: tuple[Cluster, GatewayProcess, str]) -> None:
    connection = HTTPConnection(started[1].url.removeprefix("http://"), timeout=60)
    connection.request("GET", "/openapi.json")
    validate(json.loads(connection.getresponse().read()))
    connection.close()


def test_every_operation_answers_as_documented(documented: Documented) -> None:
    """Each exchange was checked already: its status, its type, and that there is no other field."""
    answered = {name for name, status in documented.done if status < "400"}

    assert documented.operations() - answered == set()


def test_every_documented_field_is_served(documented: Documented) -> None:
    assert documented.answer_fields() - documented.served == set(NEVER_FILLED)


def test_every_documented_field_is_taken(documented: Documented) -> None:
    assert documented.request_fields() - documented.taken == set()


def test_metrics_have_counted_it(
    documented: Documented, started: tuple[Cluster, GatewayProcess, str]
) -> None:
    caller = Caller(started[1].url, started[2], documented)

    def page() -> dict[str, dict[str, float]]:
        found = metric_values(caller.ask("GET", "/metrics").decode())
        return {
            name: {str(dict(labels).get("route")): value for labels, value in values.items()}
            for name, values in found.items()
        }

    seen = page()
    assert seen["clipfleet_gateway_requests_total"].keys() >= {"/v1/batches/{batch_id}", "/v1/embeddings"}
    assert seen["clipfleet_gateway_shared_job_inputs_count"]["None"] >= 4
    assert seen["clipfleet_gateway_shared_job_inputs_sum"]["None"] >= 5
    assert seen["clipfleet_gateway_waiting_inputs"] == {"None": 0}
    wait_until(lambda: page()["clipfleet_gateway_open_batches"] == {"None": 0}, "all batches have ended")
