"""`/healthz`, `/readyz` and `/metrics` of a worker with `CLIPFLEET_HEALTH_PORT=0`."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests.support.cluster import WorkerProcess
from tests.support.metrics_page import Values, metric_values


def scrape(worker: WorkerProcess) -> dict[str, Values]:
    """The values of `/metrics`."""
    url = re.search(r"health at (http://\S+)/healthz", worker.log())
    assert url is not None
    with urlopen(f"{url[1]}/metrics", timeout=60) as answer:  # noqa: S310 - of our own worker
        return metric_values(answer.read().decode())


def ask(worker: WorkerProcess, page: str) -> tuple[int, dict[str, Any]]:
    """Code and JSON of a page; 0 without an answer."""
    url = re.search(r"health at (http://\S+)/healthz", worker.log())
    if url is None:
        return 0, {}
    try:
        with urlopen(f"{url[1]}/{page}", timeout=60) as answer:  # noqa: S310 - of our own worker
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)
    except URLError:
        return 0, {}
