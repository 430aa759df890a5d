"""What the jobs of a run read: images and broken files in a folder, and a web site that is slow."""

from __future__ import annotations

import csv
import hashlib
import io
import random
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ops.chaos.workload import IMAGE_SIZE, IMAGES, ItemKind, ItemPlan, JobPlan
from tests.support.loopback_site import LoopbackSite

_SLOWEST_SECONDS = 0.4
_VERY_SLOW_SECONDS = 3.0


class Material:
    """The files; made once per run.

    Attributes:
        hashes: sha256 of each image, lowercase hex.
    """

    def __init__(self, folder: Path, site_url: str) -> None:
        self._folder = folder
        self._site_url = site_url
        folder.mkdir()
        self.hashes = [self._write(number) for number in range(IMAGES)]
        (folder / "text.jpg").write_text("This is not an image.\n")

    def _write(self, number: int) -> str:
        data = image_bytes(number)
        (self._folder / f"{number}.jpg").write_bytes(data)
        (self._folder / f"broken-{number}.jpg").write_bytes(data[: len(data) // 2])
        return hashlib.sha256(data).hexdigest()

    def uri(self, job_id: str, item: ItemPlan) -> str:
        """Where an item of a job is read from."""
        match item.kind:
            case ItemKind.URL:
                return f"{self._site_url}/{item.image}.jpg"
            case ItemKind.SLOW:
                return f"{self._site_url}/slow/{item.image}.jpg"
            case ItemKind.GONE:
                return f"{self._site_url}/gone/{item.image}.jpg"
            case ItemKind.SICK:
                return f"{self._site_url}/sick/{job_id}/{item.image}.jpg"
            case ItemKind.MISSING:
                return str(self._folder / "missing.jpg")
            case ItemKind.BROKEN:
                return str(self._folder / f"broken-{item.image}.jpg")
            case ItemKind.TEXT:
                return str(self._folder / "text.jpg")
            case ItemKind.FILE:
                return str(self._folder / f"{item.image}.jpg")

    def write_manifest(self, path: Path, plan: JobPlan) -> None:
        """The source of a job, as CSV."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "url"])
            writer.writerows([item.item_id, self.uri(plan.job_id, item)] for item in plan.items)


def image_bytes(number: int) -> bytes:
    """A small JPEG, different for every number."""
    from PIL import Image

    chance = random.Random(number)
    image = Image.frombytes("RGB", (4, 3), chance.randbytes(36)).resize(IMAGE_SIZE, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


class Site(LoopbackSite):
    """A site on loopback: `/N.jpg` after a while; 404 below `/gone/`, and below `/sick/JOB/` until healed.

    Below `/slow/` it takes seconds.
    """

    def __init__(self) -> None:
        self._images = {f"{number}.jpg": image_bytes(number) for number in range(IMAGES)}
        self._healed: set[str] = set()
        super().__init__(_Server(self))

    def heal(self, job_id: str) -> None:
        """From now on the sick images of a job are there."""
        self._healed.add(job_id)

    def answer(self, path: str) -> bytes | None:
        """The image at a path, after a while; None: there is none."""
        *folders, name = path.strip("/").split("/")
        is_slow = folders == ["slow"]
        if folders and not is_slow and not (folders[0] == "sick" and folders[1] in self._healed):
            return None
        time.sleep(random.random() * (_VERY_SLOW_SECONDS if is_slow else _SLOWEST_SECONDS))
        return self._images.get(name)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, site: Site) -> None:
        self.site = site
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A worker that dies is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        data = self.server.site.answer(self.path)
        self.send_response_only(404 if data is None else 200)
        self.send_header("Content-Type", "text/plain" if data is None else "image/jpeg")
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
