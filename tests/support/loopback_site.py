"""The start and the end of a web server in a thread, for the sites that tests make up."""

from __future__ import annotations

import threading
from http.server import HTTPServer
from typing import Self

_POLL_SECONDS = 0.05  # until it sees its end


class LoopbackSite:
    """Serves from `__enter__` to `__exit__`; the server's own class and handler say what."""

    def __init__(self, server: HTTPServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self._server.server_port}"
