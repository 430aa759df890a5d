"""Requests to a real gateway and worker: the vectors and labels of an ordinary job, and no request lost."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfleet.client import Client, JobOptions
from tests.support.cluster import Cluster
from tests.support.gateway_process import GatewayProcess, made_key
from tests.support.http_site import HttpSite
from tests.support.images import write_images
from tests.support.waiting import wait_until

TOLERANCE = 1e-3
Answer = tuple[int, Any]


class Caller:
    """Sends bodies with a key, each on a connection of its own."""

    def __init__(self, url: str, token: str) -> None:
        self._address, self._token = url.removeprefix("http://"), token

    def post(self, path: str, body: Any) -> Answer:
        connection = HTTPConnection(self._address, timeout=120)
        try:
            headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def embed(self, given: Any, **more: Any) -> Answer:
        return self.post("/v1/embeddings", {"model": "demo", "input": given, **more})


@pytest.fixture
def gateway(cluster: Cluster, folder: Path) -> Iterator[tuple[GatewayProcess, Caller]]:
    environment = cluster.environment() | {"CLIPFLEET_GATEWAY_OUTPUT": str(folder / "gateway")}
    token = made_key(environment, "mine")
    with GatewayProcess(environment, folder) as gateway:
        yield gateway, Caller(gateway.url, token)


@pytest.fixture
def caller(gateway: tuple[GatewayProcess, Caller]) -> Caller:
    return gateway[1]


def data_uri(file: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}"


def decoded(body: Any) -> np.ndarray:
    return np.stack([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in body["data"]])


def test_vectors_are_those_of_a_folder_job(caller: Caller, client: Client, folder: Path) -> None:
    files = write_images(folder / "images", 48)
    job = client.embed(str(folder / "images"), options=JobOptions(model="demo", output=folder / "output"))
    job.wait()
    expected = job.vectors()[1].astype(np.float32)

    with ThreadPoolExecutor(16) as pool:
        uris = map(data_uri, files)
        answers = list(pool.map(lambda uri: caller.embed({"image": uri}, encoding_format="base64"), uris))

    assert [status for status, _ in answers] == [200] * len(files)
    found = np.concatenate([decoded(body) for _, body in answers])
    assert np.abs(found - expected).max() <= TOLERANCE
    status, body = caller.embed([data_uri(file) for file in files])
    assert status == 200
    numbers = np.asarray([one["embedding"] for one in body["data"]], np.float32)
    assert np.abs(numbers - expected).max() <= TOLERANCE


def test_texts_and_urls(caller: Caller, client: Client, site: HttpSite, folder: Path) -> None:
    texts = ["a photo of a cat", "a dog"]
    text_job = client.embed_text(texts, options=JobOptions(model="demo"))
    url = site.url("/files/000000.jpg")
    url_job = client.embed([url], options=JobOptions(model="demo"))
    for job in (text_job, url_job):
        job.wait()
    expected = np.concatenate([text_job.vectors()[1], url_job.vectors()[1]]).astype(np.float32)

    status, body = caller.embed([*texts, {"image": url}], encoding_format="base64")

    assert status == 200
    assert np.abs(decoded(body) - expected).max() <= TOLERANCE


def test_labels_are_those_of_a_job(caller: Caller, client: Client, folder: Path) -> None:
    (file,) = write_images(folder / "images", 1)
    labels = ["cat", "dog", "owl", "bat", "cow", "ant"]
    job = client.classify([str(file)], labels, options=JobOptions(model="demo"))
    job.wait()
    (row,) = job.results()

    status, body = caller.post(
        "/v1/zero-shot",
        {"inputs": base64.b64encode(file.read_bytes()).decode(), "parameters": {"candidate_labels": labels}},
    )

    assert status == 200
    assert [one["label"] for one in body[:5]] == row["labels"]
    assert np.allclose([one["score"] for one in body[:5]], row["scores"], atol=TOLERANCE)
    assert sum(one["score"] for one in body) == pytest.approx(1, abs=TOLERANCE)


def test_what_is_no_image_is_named(caller: Caller, folder: Path, site: HttpSite) -> None:
    (file,) = write_images(folder / "images", 1)
    broken = base64.b64encode(file.read_bytes()[:300]).decode()
    for given, code in (
        ({"image": base64.b64encode(b"no image at all").decode()}, "not_an_image"),
        ({"image": broken}, "broken_image"),
        ({"image": site.url("/files/missing.jpg")}, "not_found"),
        ({"image": "http://10.0.0.1/a.jpg"}, "address_refused"),
    ):
        status, body = caller.embed([data_uri(file), given])
        assert (status, body["error"]["param"], body["error"]["code"]) == (400, "input[1]", code)


def test_sigterm_answers_what_is_under_way(
    gateway: tuple[GatewayProcess, Caller], cluster: Cluster, folder: Path
) -> None:
    process, caller = gateway
    files = write_images(folder / "images", 8)
    worker = cluster.living_worker()
    before = {job.job_id for job in cluster.client.jobs()}
    worker.freeze()
    try:
        with ThreadPoolExecutor(8) as pool:
            asked: list[Future[Answer]] = [
                pool.submit(caller.embed, {"image": data_uri(file)}) for file in files
            ]
            wait_until(lambda: _items_of_new_jobs(cluster, before) == 8, "all requests have a job")
            ended = threading.Thread(target=process.terminate)
            ended.start()
            worker.thaw()
            answers = [one.result() for one in asked]
            ended.join()
    finally:
        worker.thaw()
    assert [status for status, _ in answers] == [200] * 8
    assert process.process.returncode == 0


def _items_of_new_jobs(cluster: Cluster, before: set[str]) -> int:
    return sum(job.total for job in cluster.client.jobs() if job.job_id not in before)


def test_a_killed_worker_costs_no_request(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images", 8)
    with Cluster(tmp_path / "own", {"CLIPFLEET_LEASE_SECONDS": "5"}) as own:
        environment = own.environment() | {"CLIPFLEET_GATEWAY_OUTPUT": str(own.folder / "gateway")}
        token = made_key(environment, "mine")
        worker = own.start_worker()
        with GatewayProcess(environment, own.folder) as process, ThreadPoolExecutor(8) as pool:
            caller = Caller(process.url, token)
            assert caller.embed("warm")[0] == 200
            worker.freeze()
            asked = [pool.submit(caller.embed, {"image": data_uri(file)}) for file in files]
            wait_until(lambda: _items_of_new_jobs(own, set()) == 9, "all requests have a job")
            worker.kill()
            own.start_worker()
            assert [one.result()[0] for one in asked] == [200] * 8
