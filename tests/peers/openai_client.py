"""What the official client of OpenAI does with a gateway, as JSON: `openai_client.py FOLDER IMAGE URL`.

Nothing of it is changed: OPENAI_BASE_URL and OPENAI_API_KEY say where it finds the gateway.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from pathlib import Path

import httpx2
import openai
from openai import DefaultHttpxClient, OpenAI

IMAGE_PART = {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}}
ENDED = {"completed", "failed", "cancelled", "expired"}


class CutOnce(httpx2.HTTPTransport):
    """Loses the answer to the first POST of a batch, which the gateway has served."""

    def __init__(self) -> None:
        super().__init__()
        self.posts = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        if request.method == "POST" and request.url.path.endswith("/batches"):
            self.posts += 1
            if self.posts == 1:
                response.read()
                raise httpx2.ReadError("the connection was cut")
        return response


def lines(path: Path, bodies: dict[str, object]) -> Path:
    """A file of requests."""
    made = [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "demo", "input": body},
        }
        for name, body in bodies.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in made))
    return path


def create(client: OpenAI, path: Path, **more: object) -> openai.types.Batch:
    with path.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    client.files.wait_for_processing(uploaded.id)
    return client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/embeddings", completion_window="24h", **more
    )


def ended(client: OpenAI, batch: openai.types.Batch) -> openai.types.Batch:
    until = time.monotonic() + 120
    while batch.status not in ENDED:
        assert time.monotonic() < until, batch
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    return batch


def embeddings(client: OpenAI, image: str) -> dict[str, object]:
    # The client asks for base64 by itself, and decodes it
    texts = client.embeddings.create(model="demo", input=["a cat", "a dog"])
    as_floats = client.embeddings.create(model="demo", input=["a cat", "a dog"], encoding_format="float")
    picture = client.embeddings.create(model="demo", input=image, extra_body={"modality": "image"})
    pairs = zip(texts.data, as_floats.data, strict=True)
    apart = max(
        abs(a - b) for one, other in pairs for a, b in zip(one.embedding, other.embedding, strict=True)
    )
    return {
        "indices": [one.index for one in texts.data],
        "apart": apart,
        "lengths": [len(one.embedding) for one in (*texts.data, *picture.data)],
        "inputs": texts.usage.total_tokens,
    }


def batches(client: OpenAI, folder: Path, image: str) -> dict[str, object]:
    bad = "data:image/jpeg;base64,AAAA"
    bodies = {f"image-{number}": [{"image": image if number != 3 else bad}] for number in range(8)}
    path = lines(folder / "lines.jsonl", bodies)
    cut = CutOnce()
    retrying = client.with_options(http_client=DefaultHttpxClient(transport=cut))
    batch = create(retrying, path, metadata={"of": "a test"})
    again = create(client, path, metadata={"of": "a test"})
    batch = ended(client, batch)
    answers = client.files.content(batch.output_file_id or "").text.splitlines()
    errors = client.files.content(batch.error_file_id or "").text.splitlines()
    failed = ended(client, create(client, lines(folder / "wrong.jsonl", {"a": "fine", "b": 5})))
    many = lines(folder / "many.jsonl", {str(number): f"text {number}" for number in range(2000)})
    cancelled = ended(client, client.batches.cancel(create(client, many).id))
    return {
        "posts": cut.posts,
        "is_same": again.id == batch.id,
        "status": batch.status,
        "metadata": batch.metadata,
        "counts": batch.request_counts.model_dump() if batch.request_counts else None,
        "answered": [json.loads(line)["custom_id"] for line in answers],
        "lengths": [len(json.loads(line)["response"]["body"]["data"][0]["embedding"]) for line in answers],
        "errors": [json.loads(line)["custom_id"] for line in errors],
        "wrong": [
            failed.status,
            failed.errors.data[0].line if failed.errors and failed.errors.data else None,
        ],
        "cancelled": cancelled.status,
        "listed": [one.id for one in client.batches.list(limit=2)] == [cancelled.id, failed.id, batch.id],
        "files": [one.purpose for one in client.files.list(limit=3)].count("batch"),
    }


def moderations(client: OpenAI, image: str, url: str) -> dict[str, object]:
    """By a data URI, by a URL, in a batch; custom categories arrive beside those of OpenAI."""
    found: dict[str, object] = {}
    for name, address in (("data", image), ("url", url)):
        part = {"type": "image_url", "image_url": {"url": address}}
        answer = client.moderations.create(model="uploads", input=[part])
        (result,) = answer.results
        found[name] = {
            "model": answer.model,
            "id": answer.id[:5],
            "flagged": result.flagged,
            "categories": result.categories.model_extra,
            "scores": sorted(result.category_scores.model_extra or {}),
            "types": (result.category_applied_input_types.model_extra or {}),
            "decision": (result.model_extra or {})["decision"],
        }
    return found


def refused(client: OpenAI, folder: Path) -> dict[str, object]:
    """The class of each error, with its code and what it names."""
    calls = {
        "empty": lambda: client.embeddings.create(model="demo", input=[]),
        "text": lambda: client.moderations.create(model="uploads", input="a text"),
        "second": lambda: client.embeddings.create(model="demo", input=["a", " "]),
        "policy": lambda: client.moderations.create(model="none", input=[IMAGE_PART]),
        "model": lambda: client.embeddings.create(model="none", input="a"),
        "file": lambda: client.files.retrieve("file-none"),
        "batch": lambda: client.batches.retrieve("batch_none"),
        "input_file": lambda: client.batches.create(
            input_file_id="file-none", endpoint="/v1/embeddings", completion_window="24h"
        ),
        "key": lambda: client.with_options(api_key="cf-none").models.list(),
        "denied": lambda: client.embeddings.create(
            model="demo", input="s3://photos/a.jpg", extra_body={"modality": "image"}
        ),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except openai.APIStatusError as error:
            found[name] = [type(error).__name__, error.param, (error.request_id or "")[:4]]
    return found


def main(folder: Path, image: Path, url: str) -> None:
    client = OpenAI()
    data_uri = "data:image/jpeg;base64," + base64.b64encode(image.read_bytes()).decode()
    found = {
        "models": [model.id for model in client.models.list()],
        "model": client.models.retrieve("demo").owned_by,
        "embeddings": embeddings(client, data_uri),
        "moderations": moderations(client, data_uri, url),
        "refused": refused(client, folder),
        "batches": batches(client, folder, data_uri),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
