"""Hostile requests to a real gateway: each gets its error, nothing is read or written, memory stays flat."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster
from tests.support.gateway_caller import Answered, GatewayCaller
from tests.support.gateway_process import GatewayProcess, made_key
from tests.support.raw_requests import RawAnswer, send_raw
from tests.support.waiting import wait_until

MOST_GROWTH_BYTES = 128 << 20  # that stays: each thread keeps some of what it has read
MOST_PEAK_BYTES = 300 << 20  # while one body is read
MODEL = {"model": "demo"}
EMBED = {**MODEL, "task": "embed", "items": ["http://h/a"]}
BATCH = {"endpoint": "/v1/embeddings", "completion_window": "24h"}
GET, POST = "GET /v1/files HTTP/1.1", "POST /v1/jobs HTTP/1.1"
MALFORMED, UNKNOWN_KEY, UNKNOWN_HOST = "malformed_request", "invalid_api_key", "unknown_host"
CHUNKED = "Transfer-Encoding: chunked"


class Canary:
    """A web server that no request may reach."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error(404)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Siege:
    """A gateway without workers, the key of its attacker, a victim's objects, and what must not change."""

    gateway: GatewayProcess
    folder: Path
    canary: Canary
    mine: GatewayCaller
    victim: GatewayCaller
    file: str
    batch: str
    job: str
    began_bytes: int = 0

    def raw(self, *head: str, body: bytes = b"", key: bool = True, **how: Any) -> RawAnswer:
        """Send the lines of a head, with a Host and a key unless they have them."""
        lines = [*head]
        if not any(line.lower().startswith("host") for line in lines):
            lines.append("Host: localhost")
        if key:
            lines.append(f"Authorization: Bearer {self.mine.token}")
        lines.append("Connection: close")
        data = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        return send_raw(self.gateway.url, data, **how)

    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.gateway.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    @contextmanager
    def peak(self, most_bytes: int) -> Iterator[None]:
        """Check that meanwhile no more memory is resident than before, but for so many bytes."""
        folder, before = Path(f"/proc/{self.gateway.process.pid}"), self.resident_bytes()
        (folder / "clear_refs").write_text("5")  # the peak begins now
        yield
        lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        grown = int(lines["VmHWM"].split()[0]) * 1024 - before
        assert grown < most_bytes, f"memory had grown by {grown >> 20} MiB"

    def kept(self) -> dict[str, str]:
        """Every file of the place and of the canary folder, by its content."""
        found = {}
        for place in ("gateway", "secret"):
            for path in sorted((self.folder / place).rglob("*")):
                if path.is_file():
                    found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    folder = tmp_path_factory.mktemp("siege")
    (folder / "secret").mkdir()
    (folder / "secret" / "a.jpg").write_bytes(b"canary")
    (folder / "secret" / "list.txt").write_text("/etc/passwd\n")
    (folder / "mine").mkdir()
    (folder / "mine" / "link").symlink_to(folder / "secret")
    with Cluster(folder) as cluster:
        settings = {
            "CLIPFLEET_GATEWAY_OUTPUT": str(folder / "gateway"),
            "CLIPFLEET_GATEWAY_FILE_BYTES": "1000000",
        }
        environment = cluster.environment() | settings
        mine, victim = (
            made_key(environment, name, "--source", str(folder / "mine")) for name in ("mine", "victim")
        )
        canary = Canary()
        with GatewayProcess(environment, folder) as gateway:
            callers = [GatewayCaller(gateway.url, token) for token in (mine, victim)]
            file, batch, job = objects_of(callers[1])
            siege = Siege(gateway, folder, canary, callers[0], callers[1], file, batch, job)
            for _ in range(20):  # what a first request loads is no leak
                callers[0].ask("POST", "/v1/jobs", {**MODEL, "task": "embed", "items": ["gs://x"]})
                callers[0].ask("GET", "/v1/files")
            callers[0].ask(
                "POST", "/v1/jobs", b"[" * (60 << 20)
            )  # nor what the allocator keeps of a large one
            before, siege.began_bytes = siege.kept(), siege.resident_bytes()
            yield siege
            grown = siege.resident_bytes() - siege.began_bytes
            assert siege.kept() == before, "something was written"
            assert canary.asked == [], "the gateway has fetched a URL"
            assert grown < MOST_GROWTH_BYTES, f"memory has grown by {grown >> 20} MiB"
            assert gateway.terminate() == 0
            assert "Traceback" not in gateway.log(), gateway.log()[-5000:]
        canary.close()


def objects_of(caller: GatewayCaller) -> tuple[str, str, str]:
    """A file, a batch and a job of a key; none of them runs, as there is no worker."""
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {**MODEL, "input": "secret"}}
    file = caller.upload("a.jsonl", json.dumps(line).encode(), "batch")
    wanted = {"input_file_id": file, **BATCH}
    batch = caller.ask("POST", "/v1/batches", wanted)
    assert batch.status == 200, batch
    job = caller.submit({**MODEL, "task": "embed_text", "items": ["secret"]})
    at = f"/v1/batches/{batch.body['id']}"
    wait_until(lambda: caller.ask("GET", at).body["status"] == "in_progress", "the batch waits for workers")
    wait_until(lambda: caller.ask("GET", f"/v1/jobs/{job['id']}").body["is_total_final"], "so does the job")
    return file, str(batch.body["id"]), str(job["id"])


# --- Heads: (lines, status, code) ---

HEADS = {
    "no key": ([GET, "X: y"], 401, UNKNOWN_KEY),
    "a key in the URL": (["GET /v1/files?api_key=cf-mine-0 HTTP/1.1", "X: y"], 401, UNKNOWN_KEY),
    "another scheme": ([GET, "Authorization: Basic Y2Y6Y2Y="], 401, UNKNOWN_KEY),
    "a guessed secret": ([GET, f"Authorization: Bearer cf-victim-{'0' * 64}"], 401, UNKNOWN_KEY),
    "a path as the name of a key": (
        [GET, f"Authorization: Bearer cf-../victim-{'0' * 64}"],
        401,
        UNKNOWN_KEY,
    ),
    "a long key": ([GET, f"Authorization: Bearer {'a' * 8000}"], 401, UNKNOWN_KEY),
    "a key with bytes": ([GET, "Authorization: Bearer \xff\xfe"], 401, UNKNOWN_KEY),
    "metrics of another method": (["DELETE /metrics HTTP/1.1", "X: y"], 405, "method_not_allowed"),
    "out of an open path": (["GET /healthz/../v1/files HTTP/1.1", "X: y"], 401, UNKNOWN_KEY),
    "an encoded open path": (["GET /v1/files?/healthz HTTP/1.1", "X: y"], 401, UNKNOWN_KEY),
}
WITH_KEY = {
    "two keys": ([GET, "Authorization: Bearer x"], 400, None),
    "rebinding": ([GET, "Host: evil.example"], 421, UNKNOWN_HOST),
    "rebinding with a port": ([GET, "Host: evil.example:8080"], 421, UNKNOWN_HOST),
    "an address as a name": ([GET, "Host: 127.0.0.1.evil.example"], 421, UNKNOWN_HOST),
    "a name before an @": ([GET, "Host: localhost@evil.example"], 421, UNKNOWN_HOST),
    "an empty host": ([GET, "Host: "], 421, UNKNOWN_HOST),
    "two hosts": ([GET, "Host: localhost", "Host: evil.example"], 400, MALFORMED),
    "another absolute form": (["GET http://evil.example/v1/files HTTP/1.1"], 421, UNKNOWN_HOST),
    "connect": (["CONNECT evil.example:443 HTTP/1.1"], 421, UNKNOWN_HOST),
    "two lengths": ([POST, "Content-Length: 5", "Content-Length: 6"], 400, MALFORMED),
    "a list of lengths": ([POST, "Content-Length: 5, 5"], 400, MALFORMED),
    "a negative length": ([POST, "Content-Length: -5"], 400, MALFORMED),
    "a length with a sign": ([POST, "Content-Length: +5"], 400, MALFORMED),
    "an endless length": ([POST, f"Content-Length: {'9' * 40}"], 400, MALFORMED),
    "length and chunks": ([POST, "Content-Length: 5", CHUNKED], 400, MALFORMED),
    "unknown coding": ([POST, "Transfer-Encoding: xchunked"], 400, MALFORMED),
    "chunks not last": ([POST, "Transfer-Encoding: chunked, gzip"], 400, MALFORMED),
    "two codings": ([POST, CHUNKED, "Transfer-Encoding: identity"], 400, MALFORMED),
    "a blank before the colon": ([POST, "Transfer-Encoding : chunked"], 400, MALFORMED),
    "a folded header": ([GET, "X: a", " b"], 400, MALFORMED),
    "a bare CR": ([GET, "X: a\rY: b"], 400, MALFORMED),
    "a NUL": ([GET, "X: a\0b"], 400, MALFORMED),
    "a header without a name": ([GET, ": x"], 400, MALFORMED),
    "a large header": ([GET, f"X: {'a' * 20_000}"], 400, MALFORMED),
    "many headers": ([GET, *(f"X-{n}: 1" for n in range(5000))], 400, MALFORMED),
    "a huge query": (["GET /v1/files?" + "a" * 20_000 + " HTTP/1.1"], 400, MALFORMED),
    "a huge path": (["GET /v1/" + "a/" * 20_000 + " HTTP/1.1"], 400, MALFORMED),
    "a path of bytes": (["GET /v1/files/\xff HTTP/1.1"], 400, MALFORMED),
    "HTTP/2": (["PRI * HTTP/2.0", "", "SM"], 400, MALFORMED),
    "1 GB": ([POST, f"Content-Length: {1 << 30}"], 413, "body_too_large"),
    "1 GB of a file": (["POST /v1/files HTTP/1.1", f"Content-Length: {1 << 30}"], 413, "file_too_large"),
    "1 GB that waits": ([POST, f"Content-Length: {1 << 30}", "Expect: 100-continue"], 413, "body_too_large"),
    "another expectation": ([POST, "Content-Length: 5", "Expect: a-miracle"], 417, "unknown_expectation"),
    "a packed body": ([POST, "Content-Length: 5", "Content-Encoding: gzip"], 415, "unsupported_encoding"),
    "a form": ([POST, "Content-Length: 2", "Content-Type: text/plain"], 415, "unsupported_media_type"),
    "another method": (["PUT /v1/jobs HTTP/1.1"], 405, "method_not_allowed"),
    "trace": (["TRACE /v1/jobs HTTP/1.1"], 405, "method_not_allowed"),
    "a double slash": (["GET //v1/files HTTP/1.1"], 404, "unknown_url"),
    "out of the API": (["GET /v1/../../etc/passwd HTTP/1.1"], 404, "unknown_url"),
    "encoded dots": (["GET /v1/files/%2e%2e%2f%2e%2e%2fkeys%2fvictim HTTP/1.1"], 404, None),
    "a path in an id": (["GET /v1/files/..%2fvictim HTTP/1.1"], 404, None),
    "NUL in an id": (["GET /v1/files/file-%00 HTTP/1.1"], 404, "not_found"),
    "NUL in a job": (["GET /v1/jobs/job_%00/rows HTTP/1.1"], 404, "not_found"),
    "invalid encoding in an id": (["GET /v1/jobs/%zz%ff HTTP/1.1"], 404, "not_found"),
    "a limit that is none": (["GET /v1/jobs?limit=1e9 HTTP/1.1"], 400, None),
    "a limit out of bounds": (["GET /v1/jobs?limit=99999999999999999999 HTTP/1.1"], 400, None),
    "two limits": (["GET /v1/jobs?limit=1&limit=2 HTTP/1.1"], 400, None),
    "two idempotency keys": (
        [POST, "Idempotency-Key: a", "Idempotency-Key: b", "Content-Length: 58"],
        400,
        None,
    ),
}
HARMLESS = b'{"task": "embed_text", "model": "demo", "items": ["none"]}'


@pytest.mark.parametrize("name", HEADS)
def test_heads_without_a_key(siege: Siege, name: str) -> None:
    lines, status, code = HEADS[name]

    answer = siege.raw(*lines, key=False)

    assert (answer.statuses, answer.code) == ([status], code), answer


@pytest.mark.parametrize("name", WITH_KEY)
def test_heads_with_a_key(siege: Siege, name: str) -> None:
    lines, status, code = WITH_KEY[name]

    answer = siege.raw(*lines, body=HARMLESS if "Idempotency-Key: a" in lines else b"")

    assert answer.statuses[-1] == status, answer
    assert code is None or answer.code == code, answer


def test_a_smuggled_request_is_not_answered(siege: Siege) -> None:
    hidden = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"

    answer = siege.raw(POST, CHUNKED, f"Content-Length: {len(hidden)}", body=hidden)

    assert answer.statuses == [400] and b'"status"' not in answer.data


@pytest.mark.parametrize("chunk", [b"ZZ\r\n", b"-1\r\n", b"f" * 20 + b"\r\n", b"5\r\nhelloX\r\n"])
def test_chunks_that_are_none(siege: Siege, chunk: bytes) -> None:
    answer = siege.raw(POST, CHUNKED, body=chunk)

    assert answer.statuses == [400] and answer.code == MALFORMED, answer


def test_garbage_before_and_behind_requests(siege: Siege) -> None:
    assert send_raw(
        siege.gateway.url, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" * 50 + b"\r\n\r\n"
    ).statuses == [400]
    health = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    found = send_raw(siege.gateway.url, health + b"\x00\x01\x02\r\n\r\n", ends_after=2)
    assert found.statuses[-1] == 400


def test_pipelined_requests_are_answered_in_their_order(siege: Siege) -> None:
    health = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n%b\r\n"

    answer = send_raw(
        siege.gateway.url, health % b"" * 500 + health % b"Connection: close\r\n", ends_after=10_000
    )

    assert answer.statuses == [200] * 501


def test_half_a_head_takes_no_place_of_others(siege: Siege) -> None:
    host, _, port = siege.gateway.url.removeprefix("http://").partition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(100)]
    try:
        for one in idle:
            one.sendall(b"GET /v1/files HTTP/1.1\r\nHost: local")

        assert siege.mine.ask("GET", "/v1/files").status == 200
    finally:
        for one in idle:
            one.close()


def test_a_body_of_chunks_beyond_the_bound_is_not_held(siege: Siege) -> None:
    piece = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {siege.mine.token}\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n"

    answer = send_raw(siege.gateway.url, (head.encode(), *(piece for _ in range(100))))

    assert answer.statuses in ([413], []), answer.data[:200]  # none: it was sending when it was refused


# --- Bodies: (path, body, status, code) ---

PART = {"input": [{"type": "image_url", "image_url": {"url": "https://host/a.jpg"}}]}
DEEP = b'{"model": "demo", "input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BODIES: dict[str, tuple[str, Any, int, str | None]] = {
    "nothing": ("/v1/jobs", b"", 400, "invalid_json"),
    "half of JSON": ("/v1/jobs", b'{"task": "embed"', 400, "invalid_json"),
    "not UTF-8": ("/v1/jobs", b'{"task": "\xff"}', 400, "invalid_json"),
    "UTF-16": ("/v1/jobs", '{"task": "embed"}'.encode("utf-16"), 400, "invalid_json"),
    "a lone surrogate": (
        "/v1/jobs",
        rb'{"task": "embed", "model": "demo", "items": ["\ud800"]}',
        400,
        "invalid_json",
    ),
    "deep lists": ("/v1/embeddings", DEEP, 400, "invalid_json"),
    "deep objects": ("/v1/jobs", b'{"a":' * 100_000, 400, "invalid_json"),
    "NaN": (
        "/v1/jobs",
        b'{"task": "embed", "model": "demo", "items": ["http://h/a"], "max_error_rate": NaN}',
        400,
        None,
    ),
    "Infinity": (
        "/v1/jobs",
        b'{"task": "embed", "model": "demo", "items": [{"url": "http://h/a", "x": Infinity}]}',
        400,
        None,
    ),
    "NaN in an embedding": (
        "/v1/embeddings",
        b'{"model": "demo", "input": "a", "dimensions": NaN}',
        400,
        None,
    ),
    "a huge number": (
        "/v1/embeddings",
        b'{"model": "demo", "input": "a", "dimensions": ' + b"9" * 5000 + b"}",
        400,
        None,
    ),
    "a list": ("/v1/jobs", [], 400, None),
    "an unknown field": ("/v1/jobs", {**EMBED, "output": "/tmp/x"}, 400, None),
    "a job id": ("/v1/jobs", {**EMBED, "job_id": "x"}, 400, None),
    "a lane": ("/v1/jobs", {**EMBED, "lane": "high"}, 400, None),
    "a task of Celery": ("/v1/jobs", {**EMBED, "on_finished": "x"}, 400, None),
    "a head of the server": ("/v1/jobs", {**EMBED, "heads": ["/etc/passwd"]}, 400, None),
    "a label file of the server": (
        "/v1/jobs",
        {**EMBED, "task": "classify", "label_sets": {"a": {"file": "/etc/passwd"}}},
        400,
        None,
    ),
    "braces without end": (
        "/v1/jobs",
        {**MODEL, "task": "embed", "source": "s3://b/{0..99999999999}.tar"},
        400,
        None,
    ),
    "braces upon braces": (
        "/v1/jobs",
        {**MODEL, "task": "embed", "source": "s3://b/" + "{a,b}" * 1500},
        400,
        None,
    ),
    "both": ("/v1/jobs", {**EMBED, "source": "s3://b/"}, 400, None),
    "an own file that is none": (
        "/v1/jobs",
        {**MODEL, "task": "embed", "source": "file-" + "0" * 32},
        404,
        "not_found",
    ),
    "a path as a model": ("/v1/embeddings", {"model": "../../etc/passwd", "input": "a"}, 503, "unavailable"),
    "a path as an input file": (
        "/v1/batches",
        {"input_file_id": "../keys/victim", **BATCH},
        404,
        "not_found",
    ),
    "a path as a policy": ("/v1/moderations", {"model": "../keys/victim", **PART}, 404, "model_not_found"),
    "a path as a version": ("/v1/moderations", {"model": "a@../../keys/x", **PART}, 404, "model_not_found"),
    "a policy of a job": ("/v1/jobs", {**EMBED, "policy": "a"}, 400, None),
    "deep lists of parts": ("/v1/moderations", DEEP, 400, "invalid_json"),
    "parts of parts": ("/v1/moderations", {"input": [[PART]]}, 400, None),
    "a path as a decision": ("/v1/decisions/..%2F..%2Fkeys/verdict", {"verdict": "upheld"}, 404, "not_found"),
    "another endpoint": (
        "/v1/batches",
        {**BATCH, "input_file_id": "file-x", "endpoint": "http://evil/"},
        400,
        None,
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(siege: Siege, name: str) -> None:
    path, body, status, code = BODIES[name]

    answer = siege.mine.ask("POST", path, body)

    assert answer.status == status, answer
    assert code is None or answer.code == code, answer
    assert "Traceback" not in answer.content.decode()


def many(before: bytes, value: bytes, after: bytes, size_bytes: int = 60 << 20) -> bytes:
    """JSON of about so many bytes: `value` again and again."""
    return before + b",".join([value] * (size_bytes // (len(value) + 1))) + after


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/embeddings", many(b'{"model": "demo", "messages": [', b"1", b"]}"), 413),
        ("/v1/embeddings", many(b'{"model": "demo", "messages": [', b"1", b"]}", 900_000), 400),
        ("/v1/embeddings", many(b'{"model": "demo", "input": "a", "x": [', b"[]", b"]}"), 413),
        ("/v1/embeddings", many(b'{"model": [', b'"a b c d e f g h i j"', b"]}", 10 << 20), 400),
        ("/v1/jobs", many(b'{"task": "embed", "items": [', b"[]", b"]}", 700_000), 400),
        ("/v1/jobs", many(b'{"task": "embed", ', b'"a": 1', b"}", 1 << 20), 400),
        ("/v1/batches", many(b'{"metadata": {', b'"a": 1', b"}}"), 413),
    ],
    ids=["numbers", "fewer numbers", "lists", "texts", "items", "fields", "metadata"],
)
def test_many_small_values_take_little_memory(siege: Siege, path: str, body: bytes, status: int) -> None:
    with siege.peak(MOST_PEAK_BYTES):
        answer = siege.mine.ask("POST", path, body)

    assert answer.status == status, answer


def test_a_file_that_is_named_often_is_not_read(siege: Siege) -> None:
    file = siege.mine.upload("a.jpg", b"x" * 900_000)

    with siege.peak(MOST_PEAK_BYTES):
        answer = siege.mine.ask("POST", "/v1/embeddings", {**MODEL, "input": [{"image": file}] * 1000})

    assert (answer.status, answer.code) == (413, "inputs_too_large")
    assert siege.mine.ask("DELETE", f"/v1/files/{file}").status == 200


def test_bodies_that_do_not_end_take_the_share_of_their_key(siege: Siege) -> None:
    host, _, port = siege.gateway.url.removeprefix("http://").partition(":")
    key = f"Authorization: Bearer {siege.mine.token}"
    head = "\r\n".join([POST, "Host: localhost", key, CHUNKED, "", ""])
    piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with siege.peak(MOST_PEAK_BYTES), ExitStack() as opened:
        for _ in range(40):
            one = opened.enter_context(socket.create_connection((host, int(port)), timeout=60))
            with suppress(OSError):  # it was refused meanwhile
                one.sendall(head.encode())
                for _ in range(15):
                    one.sendall(piece)

        answers = [siege.victim.ask("POST", "/v1/jobs", body) for body in (b"{}", b" " * (8 << 20))]

    assert [answer.status for answer in answers] == [400, 400]


# --- Sources outside of the key's, in every way to write them ---

SOURCES = [
    "{folder}/secret/a.jpg", "{folder}/mine/../secret/a.jpg", "{folder}/mine/link/a.jpg", "file://{folder}/mine/a.jpg",
    "FILE:///etc/passwd", "file:/etc/passwd", "file://localhost/etc/passwd", "s3a://photos/a.jpg", "S3://photos/a.jpg",
    "s3://photos/../gateway/keys", "s3://photos/%2e%2e/a.jpg", "s3://photos/..\\a.jpg", "gs://photos/a.jpg",
    "hf://datasets/a/b.jpg", "ftp://host/a.jpg", "unix:///run/docker.sock", "gopher://127.0.0.1:6379/_KEYS",
    "http+unix://%2Frun%2Fdocker.sock/", "a.jpg", "../a.jpg", "~/a.jpg", "~root/.ssh/id_rsa", "-",
    "//host/a.jpg",
    "\\\\host\\a.jpg", "http://user:secret@host/a.jpg", "http://host\\@evil/a.jpg", "http:/host/a.jpg", "http:///a.jpg",
    "tar+file://{folder}/mine/a.tar#offset=0&size=1&name=a", "{folder}/mine\u0000/a.jpg", "http://host/\u0000",
    "{folder}/gateway/keys/victim.json", "javascript:alert(1)", "jar:http://host!/a",
]  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_sources_outside(siege: Siege, source: str) -> None:
    address = source.format(folder=siege.folder) if "{folder}" in source else source
    asked = {**MODEL, "task": "embed"}

    answers = [
        siege.mine.ask("POST", "/v1/jobs", {**asked, "items": ["https://host/a.jpg", address]}),
        siege.mine.ask("POST", "/v1/embeddings", {**MODEL, "input": [{"image": address}]}),
        siege.mine.ask("POST", "/v1/zero-shot", {
            **MODEL, "inputs": {"image": address}, "parameters": {"candidate_labels": ["a", "b"]},
        }),
        siege.mine.ask("POST", "/v1/moderations", {
            "input": [{"type": "image_url", "image_url": {"url": address}}],
        }),
    ]  # fmt: skip
    if not address.startswith("http"):  # the URL of an image may be a source, and is refused for its words
        answers.append(siege.mine.ask("POST", "/v1/jobs", {**asked, "source": address}))

    for answer in answers:
        assert answer.status in (400, 403), answer
    assert (answers[0].status, answers[0].code, answers[0].body["error"]["param"]) == (
        403,
        "not_allowed",
        "items[1]",
    )


@pytest.mark.parametrize(
    "url",
    ["{canary}/a.jpg", "http://169.254.169.254/latest/meta-data/", "http://[::1]:6379/", "http://2130706433/a.jpg",
     "http://0177.0.0.1/a.jpg", "HTTP://LOCALHOST/a.jpg"],
)  # fmt: skip
def test_urls_are_not_fetched_by_the_gateway(siege: Siege, url: str) -> None:
    """Workers fetch, behind their address guard; there is none here. `canary` is checked at the end."""
    address = url.format(canary=siege.canary.url)

    answer = siege.mine.ask(
        "POST", "/v1/jobs", {**MODEL, "task": "embed", "items": [address, "gs://refused"]}
    )

    assert (answer.status, answer.body["error"]["param"]) == (403, "items[1]")


@pytest.mark.parametrize(
    "name",
    [
        "../../keys/evil.json",
        "/etc/cron.d/evil",
        "a\x00.txt",
        "CON",
        "..",
        "a" * 3000,
        "\u202egpj.txt",
        "a/b\\c",
        "",
    ],
)
def test_names_of_files_name_nothing(siege: Siege, name: str) -> None:
    """A file under any name is either refused or kept as data, and its removal leaves no trace."""
    border = "B"
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    head = (
        f'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        f'--B\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n\r\n'
    )
    answer = siege.mine.ask(
        "POST", "/v1/files", head.encode() + b"x\r\n--B--\r\n",
        content_type=f"multipart/form-data; boundary={border}",
    )  # fmt: skip

    assert answer.status in (200, 400), answer
    if answer.status == 200:
        assert siege.mine.ask("DELETE", f"/v1/files/{answer.body['id']}").status == 200


def test_a_file_beyond_the_bound_leaves_nothing(siege: Siege) -> None:
    border = "B"
    head = (
        f'--{border}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    ).encode()
    answer = siege.mine.ask(
        "POST", "/v1/files", head + b"x" * 1_500_000 + b"\r\n--B--\r\n",
        content_type="multipart/form-data; boundary=B",
    )  # fmt: skip

    assert (answer.status, answer.code) == (413, "file_too_large")


def test_a_bomb_of_pixels_is_only_bytes_here(siege: Siege) -> None:
    bomb = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 1000).decode()

    answer = siege.mine.ask(
        "POST", "/v1/embeddings", {**MODEL, "input": [{"image": "gs://x"}, {"image": bomb}]}
    )

    assert (answer.status, answer.code) == (403, "not_allowed")


def not_found(answer: Answered) -> bool:
    return answer.status == 404 and answer.code == "not_found"


def test_objects_of_another_key_are_absent(siege: Siege) -> None:
    """The answer to what another key has is, but for the name, that to what nobody has."""
    for mine, nobodys in (
        (f"/v1/files/{siege.file}", f"/v1/files/file-{'0' * 32}"),
        (f"/v1/batches/{siege.batch}", f"/v1/batches/batch_{'0' * 32}"),
        (f"/v1/jobs/{siege.job}", f"/v1/jobs/job_{'0' * 32}"),
    ):
        found, absent = siege.mine.ask("GET", mine), siege.mine.ask("GET", nobodys)
        assert not_found(found) and not_found(absent)
        names = mine.rpartition("/")[2].encode(), nobodys.rpartition("/")[2].encode()
        assert found.content.replace(names[0], b"") == absent.content.replace(names[1], b"")


@pytest.mark.parametrize(
    "body",
    [
        ("/v1/jobs", {"task": "embed", "source": "{file}"}),
        ("/v1/jobs", {"task": "embed", "items": ["{file}"]}),
        ("/v1/embeddings", {"input": [{"image": "{file}"}]}),
        ("/v1/zero-shot", {"inputs": {"image": "{file}"}, "parameters": {"candidate_labels": ["a", "b"]}}),
        (
            "/v1/batches",
            {"input_file_id": "{file}", **BATCH},
        ),
    ],
    ids=["source", "items", "embeddings", "zero-shot", "batches"],
)
def test_a_file_of_another_key_is_no_input(siege: Siege, body: tuple[str, dict[str, Any]]) -> None:
    path, asked = body
    text = json.dumps({**asked, **({} if path == "/v1/batches" else MODEL)}).replace("{file}", siege.file)

    answer = siege.mine.ask("POST", path, text.encode())

    assert not_found(answer), answer
