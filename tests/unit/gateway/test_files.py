"""`/v1/files` over HTTP: uploads are streamed and bounded, names are data, keys see their own files."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from clipfleet_gateway.services import Services
from clipfleet_gateway.web.app import make_app
from tests.support.gateway_app import Asking, asking, gateway_services

Found = tuple[int, dict[str, Any]]
NONE = f"file-{'0' * 32}"


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    with gateway_services(str(tmp_path / "gateway"), gateway_file_bytes=3_000_000) as services:
        yield services


def with_key(services: Services, ask: Callable[[Asking], Awaitable[Any]], name: str = "mine") -> Any:
    """What some requests with a new key, or with one of this name that is there, are answered."""

    async def all_of_it() -> Any:
        async with asking(services, services.keys.add(name)) as client:
            return await ask(client)

    return asyncio.run(all_of_it())


def form(data: bytes = b"x", filename: str = "a.jsonl", **fields: str) -> aiohttp.FormData:
    made = aiohttp.FormData(quote_fields=False)
    made.add_field("file", io.BytesIO(data), filename=filename, content_type="application/octet-stream")
    for name, value in {"purpose": "batch", **fields}.items():
        made.add_field(name.replace("__", "[") + ("]" if "__" in name else ""), value)
    return made


async def post(client: Asking, body: Any, **options: Any) -> Found:
    async with client.post("/v1/files", data=body, **options) as response:
        return response.status, await response.json()


async def get(client: Asking, path: str, method: str = "GET") -> Found:
    async with client.request(method, path) as response:
        return response.status, await response.json()


def test_upload_find_read_delete(services: Services) -> None:
    data = bytes(range(256)) * 8000

    async def ask(client: Asking) -> None:
        status, made = await post(client, form(data, "../../etc/passwd"))
        assert status == 200
        assert set(made) == {
            "id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status",
        }  # fmt: skip
        assert (made["bytes"], made["filename"], made["status"]) == (
            len(data),
            "../../etc/passwd",
            "processed",
        )
        path = f"/v1/files/{made['id']}"
        assert await get(client, path) == (200, made)
        async with client.get(f"{path}/content") as response:
            assert (response.status, response.content_type) == (200, "application/octet-stream")
            assert await response.read() == data
        assert await get(client, path, "DELETE") == (
            200, {"id": made["id"], "object": "file", "deleted": True},
        )  # fmt: skip
        for gone in (
            await get(client, path),
            await get(client, f"{path}/content"),
            await get(client, path, "DELETE"),
        ):
            assert (gone[0], gone[1]["error"]["code"]) == (404, "not_found")

    with_key(services, ask)
    root = Path(services.place.uri)
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["mine.json"], "the key alone"


def test_files_of_another_key_answer_like_none(services: Services) -> None:
    status, made = with_key(services, lambda client: post(client, form()))
    assert status == 200

    async def ask(client: Asking) -> list[tuple[int, str]]:
        found = []
        for file_id in (made["id"], NONE, "..%2Fmine%2F" + made["id"], "x"):
            for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
                status, body = await get(client, f"/v1/files/{file_id}{path}", method)
                found.append((status, body["error"]["code"]))
        assert (await get(client, "/v1/files"))[1]["data"] == []
        return found

    assert set(with_key(services, ask, "other")) == {(404, "not_found")}
    assert services.files.find("mine", made["id"]) is not None


def test_pages(services: Services) -> None:
    async def ask(client: Asking) -> None:
        made = [
            (await post(client, form(purpose=purpose)))[1] for purpose in ("batch", "vision", "user_data")
        ]
        newest_first = made[::-1]

        status, page = await get(client, "/v1/files?limit=2")
        assert (status, page["data"], page["has_more"]) == (200, newest_first[:2], True)
        assert (page["first_id"], page["last_id"]) == (made[2]["id"], made[1]["id"])
        page = (await get(client, f"/v1/files?limit=2&after={page['last_id']}"))[1]
        assert (page["data"], page["has_more"]) == (newest_first[2:], False)
        assert (await get(client, "/v1/files?order=asc"))[1]["data"] == made
        assert (await get(client, "/v1/files?purpose=vision"))[1]["data"] == made[1:2]
        for query, param in (
            ("limit=0", "limit"),
            ("limit=x", "limit"),
            ("order=up", "order"),
            ("limit=1&limit=2", "limit"),
        ):
            status, body = await get(client, f"/v1/files?{query}")
            assert (status, body["error"]["param"]) == (400, param)

    with_key(services, ask)


def test_a_file_may_expire(services: Services) -> None:
    async def ask(client: Asking) -> None:
        times = {"expires_after__anchor": "created_at", "expires_after__seconds": "3600"}
        status, made = await post(client, form(**times))
        assert (status, made["expires_at"] - made["created_at"]) == (200, 3600)
        for wrong in (
            {"expires_after__seconds": "3600"},
            {**times, "expires_after__seconds": "3599"},
            {**times, "expires_after__seconds": "soon"},
            {**times, "expires_after__anchor": "now"},
        ):
            status, body = await post(client, form(**wrong))
            assert status == 400 and body["error"]["param"].startswith("expires_after"), body

    with_key(services, ask)


def crlf(*lines: str) -> bytes:
    return "\r\n".join(lines).encode()


FORM = "multipart/form-data; boundary=B"
FILE = ("--B", 'Content-Disposition: form-data; name="file"; filename="a"', "", "x")
PURPOSE = ("--B", 'Content-Disposition: form-data; name="purpose"', "", "batch")
NESTED = (
    "--B",
    'Content-Disposition: form-data; name="file"',
    "Content-Type: multipart/mixed; boundary=C",
    "",
    "--C",
)
ENCODED = ("--B", FILE[1], "Content-Transfer-Encoding: base64", "", "eA==")


@pytest.mark.parametrize(
    ("body", "content_type", "status", "param"),
    [
        (json.dumps({"file": "x", "purpose": "batch"}).encode(), "application/json", 415, None),
        (b"", "multipart/form-data", 400, None),
        (b"", FORM, 400, None),
        (b"nothing", FORM, 400, None),
        (crlf(*PURPOSE, "--B--", ""), FORM, 400, "file"),
        (crlf(*FILE, "--B--", ""), FORM, 400, "purpose"),
        (crlf(*PURPOSE, *FILE[:-1]), FORM, 400, None),
        (crlf(*PURPOSE, *FILE), FORM, 400, None),
        (crlf(*PURPOSE, *FILE[:-1], "", "--B--", ""), FORM, 400, "file"),
        (crlf(*PURPOSE, *FILE, *FILE, "--B--", ""), FORM, 400, "file"),
        (crlf(*PURPOSE, *PURPOSE, *FILE, "--B--", ""), FORM, 400, "purpose"),
        (crlf(*PURPOSE[:-1], "x" * 5000, *FILE, "--B--", ""), FORM, 400, "purpose"),
        (crlf(*PURPOSE, *NESTED, "--B--", ""), FORM, 400, None),
        (crlf(*PURPOSE, *ENCODED, "--B--", ""), FORM, 400, "file"),
        (crlf(*PURPOSE[:-1], "fine-tune", *FILE, "--B--", ""), FORM, 400, "purpose"),
        (crlf(*PURPOSE[:-1], "batch_output", *FILE, "--B--", ""), FORM, 400, "purpose"),
    ],
)  # fmt: skip
def test_forms_that_are_none(
    services: Services, body: bytes, content_type: str, status: int, param: str | None
) -> None:
    found = with_key(services, lambda client: post(client, body, headers={"Content-Type": content_type}))

    assert (found[0], found[1]["error"]["param"]) == (status, param), found
    assert not list(Path(services.place.uri).rglob("*.bytes"))
    assert not list(Path(services.place.uri).glob("_clipfleet/tmp/*")), "no scratch file"


def test_the_purposes_are_named(services: Services) -> None:
    _, body = with_key(services, lambda client: post(client, form(purpose="fine-tune")))

    assert "'batch', 'user_data' or 'vision'" in body["error"]["message"]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_file_that_is_too_large(services: Services, is_chunked: bool) -> None:
    async def pieces() -> Any:
        yield crlf(*PURPOSE, *FILE[:-1], "")
        for _ in range(50):
            yield b"x" * 100_000
        yield crlf("", "--B--", "")

    async def ask(client: Asking) -> Found:
        if not is_chunked:
            return await post(client, form(b"x" * 5_000_000))
        return await post(client, pieces(), headers={"Content-Type": FORM})

    status, body = with_key(services, ask)

    assert (status, body["error"]["code"], body["error"]["param"]) == (413, "file_too_large", "file")
    assert not list(Path(services.place.uri).rglob("*.bytes"))
    assert not list(Path(services.place.uri).glob("_clipfleet/tmp/*")), "no scratch file"


def test_a_client_that_hangs_up_leaves_nothing(services: Services) -> None:
    token, root = services.keys.add("mine"), Path(services.place.uri)

    async def until(is_so: Callable[[], bool]) -> None:
        while not is_so():
            await asyncio.sleep(0.01)

    async def hang_up() -> None:
        server = TestServer(make_app(services))
        await server.start_server()
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = (
            "POST /v1/files HTTP/1.1", "Host: localhost", f"Authorization: Bearer {token}",
            f"Content-Type: {FORM}", "Content-Length: 2500000", "", "",
        )  # fmt: skip
        writer.write(crlf(*head) + crlf(*PURPOSE, *FILE[:-1], "") + b"x" * 2_000_000)
        await writer.drain()
        await until(lambda: any(path.stat().st_size for path in root.glob("_clipfleet/tmp/*")))
        writer.close()
        await until(lambda: not [*root.glob("_clipfleet/tmp/*")])
        await server.close()

    asyncio.run(hang_up())
    assert not list(root.rglob("*.bytes"))
