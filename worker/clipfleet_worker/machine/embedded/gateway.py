"""The gateway as a child process of `up`, on loopback: `clipfleet-gateway serve`.

It is another program: this one knows its command line only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from clipfleet.errors import UsageError
from clipfleet_worker.machine.child import Child
from clipfleet_worker.machine.embedded.private_files import read_private
from clipfleet_worker.machine.embedded.server import HOST, port_is_free

_READY = "listens at"  # the last line of its start
_PLACE = re.compile(r"^clipfleet-gateway keeps .+? in (.+)$", re.MULTILINE)  # one of its start
_STOP_SECONDS = 25.0  # longer than its last answers may take


class EmbeddedGateway:
    """One gateway for a folder, which keeps the first key: the gateway prints it only once."""

    def __init__(self, directory: Path, port: int) -> None:
        """Describe it; nothing is created yet.

        Args:
            directory: an existing folder that only its owner can read; gets `gateway.log` and `gateway.key`.
            port: on loopback.
        """
        self._directory = directory
        self._key_file = directory / "gateway.key"
        self._port = port
        self._child: Child | None = None
        self.has_new_key = False  # since this start
        self.place: str | None = None  # where it keeps everything, once it listens

    @property
    def child(self) -> Child:
        """The process."""
        if self._child is None:
            raise RuntimeError("the gateway was not started")
        return self._child

    @property
    def url(self) -> str:
        """What clients of OpenAI call the base URL."""
        return f"http://{HOST}:{self._port}/v1"

    def start(self, environ: Mapping[str, str], keep_waiting: Callable[[], bool]) -> bool:
        """Start it and wait until it listens.

        Args:
            environ: its whole environment.
            keep_waiting: see `Child.wait_ready`.

        Returns:
            False if `keep_waiting` ended the wait.

        Raises:
            UsageError: the port is in use.
            WorldError: it ended during its start; the message quotes the end of its log.
        """
        if not port_is_free(self._port):
            raise UsageError(f"{HOST}:{self._port} is in use: give another --gateway-port")
        known = self.key()
        self._child = Child(
            "gateway",
            # -P: a file of the user's folder must not shadow a package
            [sys.executable, "-P", "-m", "clipfleet_gateway", "serve", "--port", str(self._port)],
            log=self._directory / "gateway.log",
            printed=self._key_file,
            env=environ,
            is_ready=lambda: _READY in self.child.tail(),
            stop_seconds=_STOP_SECONDS,
        )
        self._child.start()
        is_ready = self._child.wait_ready(keep_waiting)
        self.has_new_key = self.key() != known
        found = _PLACE.search(self._child.tail())
        self.place = found[1] if found else None
        return is_ready

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Stop it; requests under way are answered first, see `Child.stop` for `hurry`. Idempotent."""
        if self._child is not None:
            self._child.stop(hurry)

    def key(self) -> str | None:
        """The key that a gateway of this folder made; None: the gateway's place had keys before."""
        try:
            printed = read_private(self._key_file).decode().split()
        except FileNotFoundError:
            return None
        return printed[-1] if printed else None

    def environment(self) -> dict[str, str]:
        """What clients of OpenAI read, in any language, and what `clipfleet-gateway keys` reads."""
        key = self.key()
        return (
            {"OPENAI_BASE_URL": self.url}
            | ({"OPENAI_API_KEY": key} if key else {})
            | ({"CLIPFLEET_GATEWAY_OUTPUT": self.place} if self.place else {})
        )
