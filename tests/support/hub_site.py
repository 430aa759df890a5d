"""A Hugging Face hub for tests, on a free loopback port: files of some repositories, as its client asks."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.doubles import PATIENCE_SECONDS
from tests.support.loopback_site import LoopbackSite

_FIRST_BYTES = 12 << 20  # the client counts in steps of 10 MiB
_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
_FILE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/\w+/(.+)")
_REVISION = re.compile(r"/api/models/([\w.-]+/[\w.-]+)/revision/\w+.*")
_TREE = re.compile(r"/api/models/([\w.-]+/[\w.-]+)/tree/\w+.*")


class HubSite(LoopbackSite):
    """`requests` holds what was asked, `METHOD /path`; the URL is for `HF_ENDPOINT`.

    While `may_send` is not set a file of several MB stops a little before its end.
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self.requests: list[str] = []
        self.may_send = threading.Event()
        self.may_send.set()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def _answer(self) -> None:
                site.requests.append(f"{self.command} {self.path}")
                status, body, headers = _answer_to(self.path, repositories)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body[:_FIRST_BYTES])
                    if len(body) > _FIRST_BYTES:
                        site.may_send.wait(PATIENCE_SECONDS)
                    self.wfile.write(body[_FIRST_BYTES:])

            def log_message(self, *_: object) -> None: ...

        super().__init__(ThreadingHTTPServer(("127.0.0.1", 0), Handler))


def _answer_to(
    path: str, repositories: Mapping[str, Mapping[str, bytes]]
) -> tuple[int, bytes, dict[str, str]]:
    match = _FILE.fullmatch(path) or _REVISION.fullmatch(path) or _TREE.fullmatch(path)
    if match is None:
        return 200, b"", {}
    files = repositories.get(match[1])
    if files is None:
        return 401, b"", {"X-Error-Code": "RepoNotFound"}
    if match.re is _REVISION:
        answer = {"id": match[1], "sha": _COMMIT, "siblings": [{"rfilename": name} for name in files]}
        return 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}
    if match.re is _TREE:
        tree = [
            {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
            for name, data in files.items()
        ]
        return 200, json.dumps(tree).encode(), {"Content-Type": "application/json"}
    if match[2] not in files:
        return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _COMMIT}
    data = files[match[2]]
    return 200, data, {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": _COMMIT}


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
