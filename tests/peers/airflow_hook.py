"""What Airflow's hook for OpenAI does with a gateway, as JSON: `airflow_hook.py LINES MANY_LINES`.

Nothing of it is changed: AIRFLOW_CONN_OPENAI_DEFAULT says where it finds the gateway.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from airflow.providers.openai.exceptions import OpenAIBatchCancelled
from airflow.providers.openai.hooks.openai import OpenAIHook


def create(hook: OpenAIHook, path: Path) -> str:
    """What a task does, and a retry of it again."""
    uploaded = hook.upload_file(str(path), purpose="batch")
    return str(hook.create_batch(uploaded.id, "/v1/embeddings").id)


def main(lines: Path, many: Path) -> None:
    hook = OpenAIHook()
    is_connected, words = hook.test_connection()
    batch_id, again = create(hook, lines), create(hook, lines)
    hook.wait_for_batch(batch_id, wait_seconds=0.2, timeout=120)
    batch = hook.get_batch(batch_id)
    answers = hook.conn.files.content(batch.output_file_id).text.splitlines()

    cancelled = create(hook, many)
    hook.cancel_batch(cancelled)
    try:
        hook.wait_for_batch(cancelled, wait_seconds=0.2, timeout=120)
        ending = "not cancelled"
    except OpenAIBatchCancelled:
        ending = "cancelled"
    found = {
        "is_connected": is_connected,
        "words": words,
        "is_same": again == batch_id,
        "status": batch.status,
        "answered": [json.loads(line)["custom_id"] for line in answers],
        "ending": ending,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
