"""The web server inside a worker, for `/healthz`, `/readyz` and other pages. It is read-only.

Pages are built from memory, so that they are fast whatever the worker does.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from clipfleet.errors import UsageError

log = logging.getLogger(__name__)

_REQUEST_SECONDS = 5.0  # timeout of a request


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"


Pages = Mapping[str, Callable[[], Page]]  # by path


class StatusServer:
    """Serves pages in a thread, each connection in another one."""

    def __init__(self, host: str, port: int, pages: Pages) -> None:
        """Bind the port; requests are not answered yet.

        Args:
            host: address to listen at.
            port: 0 picks a free one.
            pages: by path.

        Raises:
            UsageError: the address cannot be used.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = _Server(host, port, family, pages)
        except (OSError, UnicodeError) as error:
            raise UsageError(
                f"CLIPFLEET_HEALTH_HOST and CLIPFLEET_HEALTH_PORT: cannot listen at {host} port {port} "
                f"({error}); set another port, or an address of this machine"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)

    @property
    def url(self) -> str:
        """`http://HOST:PORT`."""
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def start(self) -> None:
        """Answer requests from now on."""
        self._thread.start()
        log.info("health at %s/healthz", self.url, extra={"action": "status_server"})

    def stop(self) -> None:
        """Stop answering."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, family: socket.AddressFamily, pages: Pages) -> None:
        self.address_family = family
        self.pages = pages
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without a look-up of our own name."""
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that hangs up."""
        log.debug("request from %s aborted", client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _REQUEST_SECONDS
    server_version, sys_version = "clipfleet", ""

    def do_GET(self) -> None:
        """Answer with a page."""
        make = self.server.pages.get(self.path.partition("?")[0])
        page = make() if make else Page(HTTPStatus.NOT_FOUND, b"", "text/plain")
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page.body)

    do_HEAD = do_GET  # noqa: N815 - the name is http.server's

    def log_message(self, *_: object) -> None:
        """Log nothing: probes come every few seconds."""
