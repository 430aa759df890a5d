"""What receivers of others make of webhook requests, as JSON: `webhook_receiver_of_others.py FILE ...`.

Each file is a program of docs/webhooks.md with a function `event_of(body, headers)`. Requests come on stdin,
one JSON object per line: body, headers, secret.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def event_of(program: str, request: dict[str, Any]) -> Any:
    """The event as the program sees it, or the name of what it raises."""
    os.environ["WEBHOOK_SECRET"] = request["secret"]
    names: dict[str, Any] = {}
    exec(compile(Path(program).read_text(), program, "exec"), names)  # noqa: S102 - of this repository
    try:
        event = names["event_of"](request["body"].encode(), request["headers"])
    except Exception as error:
        return {"raised": type(error).__name__}
    if isinstance(event, dict):
        return event
    return json.loads(event.model_dump_json()) | {"class": type(event).__name__}


def main() -> None:
    requests = [json.loads(line) for line in sys.stdin]
    print(json.dumps([[event_of(program, one) for one in requests] for program in sys.argv[1:]]))


main()
