"""A plain HTTP client of some gateways, which repeats only what no gateway has answered."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import urllib3

from tests.support.waiting import wait_until

_TRIES = 200
_PAUSE_SECONDS = 0.1
FINAL = ("completed", "failed", "expired", "cancelled")
Json = dict[str, Any]


class GatewayError(Exception):
    """An answer that a client does not repeat."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body[:500].decode(errors='replace')}")
        self.status = status
        self.error: Json = json.loads(body)["error"]


class GatewayClient:
    """Asks gateways in turn; on lost connections and 5xx the next one.

    `retries` has what was repeated: the kind of trouble of each.
    """

    def __init__(self, urls: Sequence[str], token: str, *, tries: int = _TRIES) -> None:
        """`urls` may be changed later, when gateways start elsewhere."""
        self.urls = [*urls]
        self.retries: list[str] = []
        self._tries = tries
        self._turn = 0
        self._headers = {"Authorization": f"Bearer {token}"}
        self._http = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=5, read=60))

    def ask(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **sent: Any) -> bytes:
        """The body of the answer. Raises `GatewayError` for 4xx, and for 5xx that do not end."""
        for attempt in range(self._tries):
            self._turn += 1
            url = self.urls[self._turn % len(self.urls)]
            try:
                response = self._http.request(
                    method, f"{url}{path}", headers={**self._headers, **(headers or {})}, **sent
                )
            except urllib3.exceptions.HTTPError as error:
                self.retries.append(type(error).__name__)
            else:
                if response.status < 400:
                    return response.data
                if response.status < 500 or attempt == self._tries - 1:
                    raise GatewayError(response.status, response.data)
                self.retries.append(str(response.status))
            time.sleep(_PAUSE_SECONDS)
        raise AssertionError(
            f"{method} {path}: no gateway has answered {self._tries} times: {self.retries[-5:]}"
        )

    def json(self, method: str, path: str, **sent: Any) -> Json:
        """The answer, which is a JSON object."""
        answer: Json = json.loads(self.ask(method, path, **sent))
        return answer

    def upload(self, data: bytes, purpose: str = "batch", filename: str = "input.jsonl") -> str:
        """The id of a new file."""
        fields = {"purpose": purpose, "file": (filename, data, "application/octet-stream")}
        return str(self.json("POST", "/v1/files", fields=fields)["id"])

    def begin(self, file_id: str, endpoint: str = "/v1/embeddings", **other: Any) -> Json:
        """A batch over a file."""
        headers = other.pop("headers", {})
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h", **other}
        return self.json("POST", "/v1/batches", headers=headers, body=json.dumps(body).encode())

    def batch(self, batch_id: str) -> Json:
        return self.json("GET", f"/v1/batches/{batch_id}")

    def ended(self, batch_id: str, seconds: float = 120.0) -> Json:
        """The batch once it has ended."""
        found: list[Json] = []

        def has_ended() -> bool:
            found[:] = [self.batch(batch_id)]
            return found[0]["status"] in FINAL

        wait_until(has_ended, "the batch has ended", seconds)
        return found[0]

    def lines(self, file_id: str | None) -> list[Json]:
        """The lines of a file; none if there is no file."""
        if file_id is None:
            return []
        return [json.loads(line) for line in self.ask("GET", f"/v1/files/{file_id}/content").splitlines()]
