"""A network in which every address there is leads to this process: to see where a program really connects.

For a process in a network namespace of its own (`unshare --map-root-user --net --mount`), with nothing in it
but the loopback device. A web server listens on every address and notes each connection it accepted; those
at public addresses serve an image and redirects, and so do all others: who gets that far gets an image.
"""

from __future__ import annotations

import http.server
import socket
import socketserver
import ssl
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from pyroute2 import IPRoute

from tests.support.http_site import CERTIFICATE

_LOCAL_TABLE = 255
_HOST_SCOPE = 254
TLS_PORT = 443


def open_network(addresses: Iterable[str]) -> None:
    """Bring loopback up, make all addresses local ones; these are also the machine's own, for getaddrinfo."""
    with IPRoute() as routes:
        loopback = routes.link_lookup(ifname="lo")[0]
        routes.link("set", index=loopback, state="up")
        for network, family in (("0.0.0.0/0", socket.AF_INET), ("::/0", socket.AF_INET6)):
            routes.route(
                "add",
                dst=network,
                family=family,
                oif=loopback,
                type="local",
                table=_LOCAL_TABLE,
                scope=_HOST_SCOPE,
            )
        for address in addresses:
            routes.addr("add", index=loopback, address=address, prefixlen=128 if ":" in address else 32)


class EveryAddress:
    """Web servers on all addresses, IPv4 and IPv6, and some ports, from `__enter__` to `__exit__`.

    | path | answer |
    |---|---|
    | `/image...` | an image |
    | `/to?URL` | a redirect to the percent-encoded URL |

    Port 443 speaks https, with the certificate of `CERTIFICATE`. Every connection serves one request.

    Args:
        image: what is served.
        ports: where to listen.
    """

    def __init__(self, image: Path, ports: Iterable[int]) -> None:
        self.accepted: Counter[tuple[str, int]] = Counter()  # connections by what they were made to
        self._image = image.read_bytes()
        self._servers = [
            _Server(self, family, host, port)
            for port in ports
            for family, host in ((socket.AF_INET, ""), (socket.AF_INET6, "::"))
        ]

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, name="every-address", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def respond(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path with its query."""
        name, _, query = path.partition("?")
        if name == "/to":
            return 302, {"Location": unquote(query)}, b""
        if name.startswith("/image"):
            return 200, {"Content-Type": "image/png"}, self._image
        return 404, {}, b""


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, outer: EveryAddress, family: socket.AddressFamily, host: str, port: int) -> None:
        self.outer = outer
        self.address_family = family
        self._tls: ssl.SSLContext | None = None
        if port == TLS_PORT:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(CERTIFICATE)
        super().__init__((host, port), _Handler, bind_and_activate=False)
        if family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.server_bind()
        self.server_activate()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, peer = super().get_request()
        host, port = connection.getsockname()[:2]
        self.outer.accepted[host, port] += 1
        return connection, peer

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        with self._tls.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that has gone


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        status, headers, body = self.server.outer.respond(self.path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value.encode().decode("latin-1"))  # on the wire it is UTF-8
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
