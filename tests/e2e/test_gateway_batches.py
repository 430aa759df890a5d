"""Batches through a real gateway process and a real worker: files in, files out."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.batches import jsonl, line
from tests.support.cluster import Cluster
from tests.support.gateway_client import GatewayClient, GatewayError
from tests.support.gateway_process import GatewayProcess, made_key
from tests.support.http_site import HttpSite
from tests.support.images import write_images
from tests.support.s3 import S3Bucket
from tests.support.waiting import wait_until


@pytest.fixture(params=["folder", "s3"])
def gateway(request: pytest.FixtureRequest, cluster: Cluster, folder: Path) -> Iterator[GatewayClient]:
    """A gateway, and a client whose key may read the photos of the test."""
    place = f"{folder}/place"
    if request.param == "s3":
        bucket: S3Bucket = request.getfixturevalue("s3")
        place = f"{bucket.uri}/place"
    environment = cluster.environment() | {"CLIPFLEET_GATEWAY_OUTPUT": place}
    token = made_key(environment, "mine", "--source", f"{folder}/photos")
    with GatewayProcess(environment, folder) as process:
        yield GatewayClient([process.url], token)
        assert process.terminate() == 0
        assert "Traceback" not in process.log(), process.log()


def image_line(custom_id: str, *images: str, **other: Any) -> dict[str, Any]:
    return line(custom_id, {"model": "demo", "input": [{"image": one} for one in images], **other})


def vectors_of(answered: dict[str, Any]) -> np.ndarray:
    data = answered["response"]["body"]["data"]
    assert [one["index"] for one in data] == [*range(len(data))]
    return np.array([one["embedding"] for one in data])


def test_images_from_everywhere(
    gateway: GatewayClient, cluster: Cluster, folder: Path, site: HttpSite
) -> None:
    paths = write_images(folder / "photos", 4)
    data = [path.read_bytes() for path in paths]
    own = gateway.upload(data[2], "vision", "2.jpg")
    inline = f"data:image/jpeg;base64,{base64.b64encode(data[3]).decode()}"
    lines = [
        image_line("site", site.url("/files/000000.jpg")),
        image_line("path", str(paths[1])),
        image_line("two", own, inline),
        image_line("text", str(paths[0]), f"data:image/jpeg;base64,{base64.b64encode(b'no image').decode()}"),
        image_line("gone", site.url("/status/404")),
        image_line("base64", str(paths[1]), encoding_format="base64"),
    ]

    batch = gateway.ended(gateway.begin(gateway.upload(jsonl(*lines)), metadata={"night": "1"})["id"])

    assert (batch["status"], batch["model"], batch["metadata"]) == ("completed", "demo", {"night": "1"})
    assert batch["request_counts"] == {"total": 6, "completed": 4, "failed": 2}
    done, failed = gateway.lines(batch["output_file_id"]), gateway.lines(batch["error_file_id"])
    assert [one["custom_id"] for one in done] == ["site", "path", "two", "base64"]
    assert [(one["custom_id"], one["error"]["code"], one["error"]["param"]) for one in failed] == [
        ("text", "not_an_image", "input[1]"), ("gone", "not_found", "input[0]"),
    ]  # fmt: skip
    handle = cluster.embed([str(path) for path in paths])
    handle.wait(60)
    _, expected = handle.vectors()
    found = np.concatenate([vectors_of(one) for one in done[:3]])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    raw = base64.b64decode(done[3]["response"]["body"]["data"][0]["embedding"])
    np.testing.assert_allclose(np.frombuffer(raw, "<f4"), expected[1], atol=1e-3)
    assert [one["id"] for one in gateway.json("GET", "/v1/batches")["data"]] == [batch["id"]]


def test_labels_per_line(gateway: GatewayClient, folder: Path) -> None:
    (path,) = write_images(folder / "photos", 1)
    sets = {"a": ["cat", "dog"], "b": ["red", "green", "blue"], "c": ["cat", "dog"]}
    lines = [
        line(
            custom_id,
            {"model": "demo", "inputs": {"image": str(path)}, "parameters": {"candidate_labels": labels}},
            url="/v1/zero-shot",
        )
        for custom_id, labels in sets.items()
    ]

    batch = gateway.ended(gateway.begin(gateway.upload(jsonl(*lines)), "/v1/zero-shot")["id"])

    done = {one["custom_id"]: one["response"]["body"] for one in gateway.lines(batch["output_file_id"])}
    assert {name: sorted(one["label"] for one in body) for name, body in done.items()} == {
        name: sorted(labels) for name, labels in sets.items()
    }
    assert all(abs(sum(one["score"] for one in body) - 1) < 1e-3 for body in done.values())
    assert done["a"] == done["c"]


def test_texts_and_a_file_that_is_wrong(gateway: GatewayClient) -> None:
    good = gateway.begin(gateway.upload(jsonl(*[line(f"{n}") for n in range(20)])))
    bad = gateway.begin(gateway.upload(jsonl(line("a"), line("a"), line("b", method="GET"))))

    ended = gateway.ended(good["id"])
    assert [one["custom_id"] for one in gateway.lines(ended["output_file_id"])] == [f"{n}" for n in range(20)]
    failed = gateway.ended(bad["id"])
    assert failed["status"] == "failed"
    found = [(one["line"], one["code"]) for one in failed["errors"]["data"]]
    assert found == [(2, "duplicate_custom_id"), (3, "invalid_method")]
    assert (failed["output_file_id"], failed["error_file_id"]) == (None, None)


def cancelled(gateway: GatewayClient, batch_id: str) -> dict[str, Any]:
    """The batch, cancelled once its lines were read: before, it would have no files."""
    wait_until(lambda: gateway.batch(batch_id)["status"] == "in_progress", "its lines were read")
    answer = gateway.json("POST", f"/v1/batches/{batch_id}/cancel")
    assert answer["status"] in ("cancelling", "cancelled")
    return gateway.ended(batch_id)


def test_a_repeated_request_and_a_cancel(gateway: GatewayClient) -> None:
    """The model has no worker, so the batch waits: nothing ends it but a cancel."""
    data = jsonl(*[line(f"{n}", {"model": "ViT-B-32", "input": "x"}) for n in range(5)])
    batch = gateway.begin(gateway.upload(data))

    again = gateway.begin(gateway.upload(data))
    assert again["id"] == batch["id"]
    with_key = {"headers": {"Idempotency-Key": "night-1"}}
    other = gateway.begin(gateway.upload(data), **with_key)
    assert other["id"] != batch["id"]
    assert gateway.begin(gateway.upload(data), **with_key)["id"] == other["id"]
    with pytest.raises(GatewayError, match="Idempotency-Key"):
        gateway.begin(gateway.upload(data[:-1]), **with_key)

    for one in (batch, other):
        ended = cancelled(gateway, one["id"])
        assert (ended["status"], ended["output_file_id"]) == ("cancelled", None)
        codes = [line["error"]["code"] for line in gateway.lines(ended["error_file_id"])]
        assert codes == ["batch_cancelled"] * 5
    assert gateway.begin(gateway.upload(data), **with_key)["id"] == other["id"]
    third = gateway.begin(gateway.upload(data))
    assert third["id"] not in (batch["id"], other["id"])
    gateway.json("POST", f"/v1/batches/{third['id']}/cancel")
    gateway.ended(third["id"])
