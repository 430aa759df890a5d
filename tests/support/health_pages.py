"""What a worker says at `/healthz` and `/readyz`, for tests that start one with `CLIPFLEET_HEALTH_PORT=0`."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests.support.cluster import WorkerProcess


def ask(worker: WorkerProcess, page: str) -> tuple[int, dict[str, Any]]:
    """Code and JSON of a page; 0 if nobody answers."""
    url = re.search(r"health at (http://\S+)/healthz", worker.log())
    if url is None:
        return 0, {}
    try:
        with urlopen(f"{url[1]}/{page}", timeout=30) as answer:  # noqa: S310 - of our own worker
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)
    except URLError:
        return 0, {}
