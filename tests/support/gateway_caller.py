"""Asks a gateway over HTTP, as a client in any language would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from uuid import uuid4

from tests.support.waiting import wait_until


@dataclass(frozen=True)
class Answered:
    """What was answered."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)

    @property
    def code(self) -> str | None:
        """Of an error, whose object must have its four keys and no others."""
        assert set(self.body) == {"error"}
        assert set(self.body["error"]) == {"message", "type", "param", "code"}
        code: str | None = self.body["error"]["code"]
        return code

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.content.splitlines()]


@dataclass(frozen=True)
class GatewayCaller:
    """One key, one connection per request."""

    url: str  # without a path
    token: str

    def ask(
        self, method: str, target: str, body: Any = None, *, content_type: str = "", **headers: str
    ) -> Answered:
        """Send a request; a body that is not bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if data is not None:
            sent["Content-Type"] = content_type or "application/json"
        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        try:
            connection.request(
                method,
                target,
                data,
                sent | {name.replace("_", "-"): value for name, value in headers.items()},
            )
            answer = connection.getresponse()
            return Answered(answer.status, dict(answer.headers), answer.read())
        finally:
            connection.close()

    def upload(self, name: str, content: bytes, purpose: str = "user_data") -> str:
        """Upload a file; returns its id."""
        border = uuid4().hex
        head = (
            f'--{border}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
            f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        )
        data = head.encode() + content + f"\r\n--{border}--\r\n".encode()
        answer = self.ask("POST", "/v1/files", data, content_type=f"multipart/form-data; boundary={border}")
        assert answer.status == 200, answer
        return str(answer.body["id"])

    def submit(self, body: Mapping[str, Any], **headers: str) -> dict[str, Any]:
        """Submit a job."""
        answer = self.ask("POST", "/v1/jobs", body, **headers)
        assert answer.status == 200, answer
        job: dict[str, Any] = answer.body
        return job

    def ended(self, job_id: str, seconds: float = 60.0) -> dict[str, Any]:
        """A job at its end."""
        found: list[dict[str, Any]] = []

        def has_ended() -> bool:
            found.append(self.ask("GET", f"/v1/jobs/{job_id}").body)
            return found[-1]["finished_at"] is not None

        wait_until(has_ended, f"{job_id} has ended", seconds)
        return found[-1]
