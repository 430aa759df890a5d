"""`/v1/jobs` with a real gateway, worker and Redis: submitted, followed, read, cancelled, and never lost."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster
from tests.support.gateway_caller import GatewayCaller
from tests.support.gateway_process import GatewayProcess, gateway_command, made_key
from tests.support.images import encoded, make_image
from tests.support.waiting import wait_until

LABELS = {"task": "classify", "model": "demo", "labels": ["a red square", "a blue circle"]}
EMBED = {"task": "embed", "model": "demo"}


class Site:
    """A gateway with a worker, two keys, and a folder of images that the first may read."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.environment = cluster.environment() | {"CLIPFLEET_GATEWAY_OUTPUT": str(folder / "gateway")}
        self.images = folder / "photos"
        self.images.mkdir()
        for number in range(6):
            (self.images / f"{number}.jpg").write_bytes(encoded(make_image(number)))
        (folder / "secret.jpg").write_bytes(encoded(make_image(9)))
        self.tokens = [
            made_key(self.environment, "mine", "--source", str(self.images)),
            made_key(self.environment, "other"),
        ]
        self.gateway = GatewayProcess(self.environment, folder)

    @property
    def mine(self) -> GatewayCaller:
        return GatewayCaller(self.gateway.url, self.tokens[0])

    @property
    def other(self) -> GatewayCaller:
        return GatewayCaller(self.gateway.url, self.tokens[1])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("jobs")
    with Cluster(folder) as cluster:
        site = Site(cluster, folder)
        try:
            cluster.start_worker()
            yield site
            assert site.gateway.terminate() == 0, site.gateway.log()
        finally:
            site.gateway.kill()
        assert "Traceback" not in site.gateway.log()


def data_uri(number: int) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(encoded(make_image(number))).decode()


def test_items_are_labelled_and_their_rows_are_those_of_the_command(site: Site) -> None:
    own = site.mine.upload("a.jpg", encoded(make_image(3)))
    items: list[Any] = [data_uri(1), str(site.images / "0.jpg"), {"url": own, "id": "own", "year": 2026}]

    job = site.mine.submit({**LABELS, "items": items, "top_k": 1})
    ended = site.mine.ended(job["id"])

    assert (job["object"], job["state"], job["source"], job["lane"]) == ("job", "submitting", None, "normal")
    assert (ended["state"], ended["total"], ended["ok"], ended["failed"]) == ("completed", 3, 3, 0)
    assert ended["is_total_final"] and ended["error"] is None and ended["items_per_second"] > 0
    rows = site.mine.ask("GET", f"/v1/jobs/{job['id']}/rows")
    assert rows.headers["x-clipfleet-complete"] == "true"
    assert [row["item_id"] for row in rows.lines] == ["0", "1", "own"]
    assert [row["year"] for row in rows.lines] == [None, None, 2026]
    assert all(row["label"] in LABELS["labels"] for row in rows.lines)
    printed = site.cluster.run("results", job["id"], "--format", "jsonl")
    assert rows.content.decode() == printed.stdout


def test_an_own_list_with_columns(site: Site) -> None:
    lines = [f"{site.images}/{number}.jpg,{number}" for number in range(6)]
    listed = site.mine.upload(
        "list.csv", "\n".join(["image,shot", *lines, "https://127.0.0.1:1/a.jpg,9"]).encode()
    )

    job = site.mine.submit({**EMBED, "source": listed, "url_column": "image", "id_column": "shot"})
    ended = site.mine.ended(job["id"])

    assert (ended["state"], ended["ok"], ended["failed"]) == ("completed_with_errors", 6, 1)
    assert sum(ended["error_codes"].values()) == 1
    failed = site.mine.ask("GET", f"/v1/jobs/{job['id']}/rows?failed=true").lines
    assert [row["item_id"] for row in failed] == ["9"]
    assert len(site.mine.ask("GET", f"/v1/jobs/{job['id']}/rows?limit=2").lines) == 2


@pytest.mark.parametrize("source", ["", "/*.jpg", "/list.txt"])
def test_a_place_of_the_key(site: Site, source: str) -> None:
    (site.images / "list.txt").write_text("\n".join(f"{number}.jpg" for number in range(6)))

    job = site.mine.submit({**EMBED, "source": f"{site.images}{source}"})

    assert site.mine.ended(job["id"])["ok"] == 6


def test_texts(site: Site) -> None:
    listed = site.mine.upload("texts.txt", b"a cat\nfile:///etc/passwd\n")

    jobs = [
        site.mine.submit({"task": "embed_text", "model": "demo", **what})
        for what in ({"items": ["a cat", {"text": "../a dog"}]}, {"source": listed})
    ]

    assert [site.mine.ended(job["id"])["ok"] for job in jobs] == [2, 2]


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.txt", "https://host/a.jpg\n\n\n{folder}/secret.jpg\n", "line 4"),
        (
            "a.jsonl",
            '{{"url": "https://host/a.jpg"}}\n{{"url": "{folder}/photos/../secret.jpg"}}\n',
            "line 2",
        ),
        ("a.csv", 'url,text\nhttps://host/a.jpg,"two\nlines"\nfile://{folder}/photos/0.jpg,x\n', "line 4"),
        ("a.txt", "0.jpg\n", "line 1"),
        ("a.tsv", "url\tx\ns3://bucket/a.jpg\t1\n", "line 2"),
        ("a.txt", "tar+file://{folder}/a.tar#offset=0&size=1&name=a.jpg\n", "line 1"),
    ],
)
def test_a_list_with_one_address_that_the_key_may_not_read(
    site: Site, name: str, content: str, where: str
) -> None:
    listed = site.mine.upload(name, content.format(folder=site.folder).encode())

    ended = site.mine.ended(site.mine.submit({**EMBED, "source": listed})["id"])

    assert (ended["state"], ended["error"]["code"], ended["error"]["param"]) == (
        "failed",
        "not_allowed",
        "source",
    )
    assert f"source: {where}: This key may not read " in ended["error"]["message"]
    assert str(site.folder / "gateway") not in ended["error"]["message"]


def test_names_in_a_list_below_a_base(site: Site) -> None:
    listed = site.mine.upload("a.txt", b"0.jpg\n1.jpg\n")
    outside = site.mine.upload("b.txt", b"0.jpg\n../secret.jpg\n")

    inside = site.mine.submit({**EMBED, "source": listed, "base_uri": str(site.images)})
    refused = site.mine.submit({**EMBED, "source": outside, "base_uri": str(site.images)})
    other = site.mine.submit({**EMBED, "source": listed, "base_uri": str(site.folder)})

    assert site.mine.ended(inside["id"])["ok"] == 2
    assert "line 2" in site.mine.ended(refused["id"])["error"]["message"]
    assert "line 1" in site.mine.ended(other["id"])["error"]["message"]


def test_a_source_that_is_not_there_is_told_by_the_job(site: Site) -> None:
    job = site.mine.submit({**EMBED, "source": f"{site.images}/none/"})

    ended = site.mine.ended(job["id"])

    assert (ended["state"], ended["error"]["code"]) == ("failed", "not_submitted")
    assert "does not exist" in ended["error"]["message"]


def test_the_same_idempotency_key_makes_one_job(site: Site) -> None:
    body = {**EMBED, "items": [data_uri(1)]}

    first, second = (site.mine.submit(body, Idempotency_Key="night-1") for _ in range(2))
    other = site.mine.ask("POST", "/v1/jobs", {**EMBED, "items": [data_uri(2)]}, Idempotency_Key="night-1")
    of_another_key = site.other.submit(body, Idempotency_Key="night-1")

    assert first["id"] == second["id"] != of_another_key["id"]
    assert (other.status, other.code) == (400, "idempotency_key_reused")
    assert site.mine.ended(first["id"])["total"] == 1


def test_cancel_and_pages_and_nobody_elses_jobs(site: Site) -> None:
    site.cluster.embed(str(site.images), job_id="of-the-command-line").wait(60)
    jobs = [site.other.submit({**EMBED, "items": [data_uri(1)]}) for _ in range(3)]
    for job in jobs:
        site.other.ended(job["id"])

    first = site.other.ask("GET", "/v1/jobs?limit=2").body
    rest = site.other.ask("GET", f"/v1/jobs?after={first['last_id']}").body
    assert [job["id"] for job in first["data"]] == [job["id"] for job in jobs[:0:-1]]
    assert first["has_more"] and not rest["has_more"]
    assert jobs[0]["id"] in [job["id"] for job in rest["data"]]
    cancelled = site.other.ask("POST", f"/v1/jobs/{jobs[0]['id']}/cancel")
    assert (cancelled.status, cancelled.body["state"]) == (200, "completed")
    for path in ("of-the-command-line", jobs[0]["id"]):
        for method, more in (("GET", ""), ("GET", "/rows"), ("POST", "/cancel")):
            answer = site.mine.ask(method, f"/v1/jobs/{path}{more}")
            assert (answer.status, answer.code) == (404, "not_found")


def test_a_long_list_survives_the_kill_of_its_gateway(site: Site) -> None:
    count = 60_000
    listed = site.mine.upload(
        "long.txt", "".join(f"{site.images}/{n % 6}.jpg?{n}\n" for n in range(count)).encode()
    )
    job = site.mine.submit({**EMBED, "source": listed, "max_error_rate": 1})

    wait_until(lambda: site.mine.ask("GET", f"/v1/jobs/{job['id']}").body["total"] > 0, "a part is staged")
    site.gateway.kill()
    site.gateway = GatewayProcess(site.environment, site.folder, name="again")
    wait_until(
        lambda: site.mine.ask("GET", f"/v1/jobs/{job['id']}").body["is_total_final"], "all is staged", 120
    )

    assert site.mine.ask("POST", f"/v1/jobs/{job['id']}/cancel").status == 200
    ended = site.mine.ended(job["id"])
    assert ended["total"] == count
    assert ended["state"] in ("cancelled", "completed_with_errors"), "the worker may have been faster"
    wait_until(lambda: not list((site.folder / "gateway" / "open-jobs").iterdir()), "no job is open")
    indexes = [row["item_index"] for row in site.mine.ask("GET", f"/v1/jobs/{job['id']}/rows").lines]
    assert len(indexes) == len(set(indexes))


def test_what_a_key_was_made_with_holds_from_end_to_end(site: Site) -> None:
    token = made_key(
        site.environment, "small", "--quota", "3", "--lane", "bulk", "--source", str(site.images / "0.jpg")
    )  # fmt: skip
    small = GatewayCaller(site.gateway.url, token)

    job = small.submit({**EMBED, "source": f"{site.images}/0.jpg"})
    assert small.ended(job["id"])["ok"] == 1
    assert job["lane"] == site.cluster.status(job["id"]).lane == "bulk"
    refused = small.ask("POST", "/v1/jobs", {**EMBED, "items": [f"{site.images}/1.jpg"]})
    assert (refused.status, refused.code, refused.body["error"]["param"]) == (403, "not_allowed", "items[0]")
    exceeded = small.ask("POST", "/v1/jobs", {**EMBED, "items": [data_uri(1)] * 3})
    assert (exceeded.status, exceeded.code) == (429, "quota_exceeded")
    assert 1 <= int(exceeded.headers["Retry-After"]) <= 86_400
    listed = small.upload("list.txt", b"https://127.0.0.1:1/a.jpg\n" * 3)
    failed = small.ended(small.submit({**EMBED, "source": listed})["id"])
    assert (failed["state"], failed["error"]["code"]) == ("failed", "quota_exceeded")
    last = small.submit({**EMBED, "items": [data_uri(1), data_uri(2)]})
    assert small.ended(last["id"])["ok"] == 2

    assert gateway_command(site.environment, "keys", "revoke", "small").returncode == 0
    wait_until(lambda: small.ask("GET", "/v1/jobs").status == 401, "the key opens nothing", 10)
    assert json.loads(small.ask("GET", "/v1/jobs").content)["error"]["code"] == "invalid_api_key"
