"""Where the bodies of requests that wait are read: what may take long, never on the event loop."""

from __future__ import annotations

import asyncio
import base64
import threading
from pathlib import Path
from typing import Any

import pytest

from clipfleet_gateway.inputs import images
from tests.support.gateway_app import asking, gateway_services

LABELS = {"candidate_labels": ["cat", "dog"]}
LARGE = base64.b64encode(b"\xff\xd8\xff" + bytes(300_000)).decode()


def post(place: Path, path: str, body: Any, **options: Any) -> int:
    """The status of the answer to a key with these options; there is no Redis."""

    async def inside(token: str) -> int:
        async with asking(services, token) as client, client.post(path, json=body) as response:
            return response.status

    with gateway_services(str(place)) as services:
        return asyncio.run(inside(services.keys.add("mine", **options)))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "demo", "input": {"image": LARGE}}),
        ("/v1/zero-shot", {"model": "demo", "inputs": LARGE, "parameters": LABELS}),
    ],
)
def test_a_large_image_is_decoded_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str, body: Any
) -> None:
    decode, threads = images._bounded, []

    def watched(*arguments: Any) -> bytes:
        threads.append(threading.current_thread())
        return decode(*arguments)

    monkeypatch.setattr(images, "_bounded", watched)

    assert post(tmp_path / "gateway", path, body) == 503  # once it is read

    assert len(threads) == 1 and threads[0] is not threading.main_thread()


def test_a_folder_is_looked_at_in_a_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = f"{tmp_path}/mine/a.jpg"
    resolve, threads = Path.resolve, []

    def watched(path: Path, *arguments: Any, **named: Any) -> Path:
        if str(path) == address:
            threads.append(threading.current_thread())
        return resolve(path, *arguments, **named)

    monkeypatch.setattr(Path, "resolve", watched)

    status = post(
        tmp_path / "gateway", "/v1/embeddings", {"model": "demo", "input": {"image": address}},
        sources=(f"{tmp_path}/mine/",),
    )  # fmt: skip

    assert status == 503
    assert threads and threading.main_thread() not in threads
