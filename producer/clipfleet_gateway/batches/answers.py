"""The files of a batch that has ended: rows become answers, line by line, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
from pydantic import BaseModel

from clipfleet_gateway.batches.jobs import Row
from clipfleet_gateway.batches.lines import lines_of
from clipfleet_gateway.batches.record import BatchRecord, Checked, Ending
from clipfleet_gateway.batches.validation import KeptRequest
from clipfleet_gateway.errors import ApiError, words_of_failure
from clipfleet_gateway.files.store import Received
from clipfleet_gateway.inputs.embeddings import embedding_answer
from clipfleet_gateway.inputs.moderations import moderation_answer
from clipfleet_gateway.inputs.zero_shot import zero_shot_answer
from clipfleet_gateway.policies.stored import StoredPolicy
from clipfleet_gateway.shapes.batches import AnsweredLine, Endpoint, LineError, LineResponse
from clipfleet_gateway.shapes.embeddings import EmbeddingsRequest

_PIECE_BYTES = 1 << 20
_NOT_RUN = {
    Ending.COMPLETED: ("not_run", "The request was not run"),
    Ending.EXPIRED: ("batch_expired", "The batch expired before this request was done"),
    Ending.CANCELLED: ("batch_cancelled", "The batch was cancelled before this request was done"),
    Ending.FAILED: ("batch_failed", "The batch failed before this request was done"),
}


class Lines:
    """One of the two files, as it is written."""

    def __init__(self, received: Received) -> None:
        self.received = received
        self.count = 0
        self._held = bytearray()

    def add(self, line: AnsweredLine) -> None:
        """Append a line."""
        self.count += 1
        self._held += line.model_dump_json().encode() + b"\n"
        if len(self._held) >= _PIECE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held back."""
        self.received.write(bytes(self._held))
        self._held.clear()


def write_answers(
    batch: BatchRecord,
    checked: Checked,
    ending: Ending,
    requests: pa.NativeFile,
    rows: Iterator[Row],
    done: Lines,
    failed: Lines,
    alive: Callable[[], object],
    policy: StoredPolicy | None = None,
) -> None:
    """Write each request into one of two files: that with answers if all of its inputs have one."""
    first, ahead = 0, next(rows, None)
    for number, line in enumerate(lines_of(requests), 1):
        alive()
        request = KeptRequest.model_validate_json(line)
        end = first + len(request.params)
        own: list[Row] = []
        while ahead is not None and ahead.item_index < end:
            own.append(ahead)
            ahead = next(rows, None)
        answered = _answered(
            f"{batch.id}-{number}", batch.endpoint, checked.model, ending, request, own, first, policy
        )
        (failed if answered.response is None else done).add(answered)
        first = end
    done.flush()
    failed.flush()


def _answered(
    request_id: str,
    endpoint: Endpoint,
    model: str,
    ending: Ending,
    request: KeptRequest,
    rows: Sequence[Row],
    first: int,
    policy: StoredPolicy | None,
) -> AnsweredLine:
    """A line of the output or error file."""
    named = {"id": f"batch_req_{request_id}", "custom_id": request.custom_id}
    for row in rows:
        if row.error is not None:
            code, detail = row.error
            param = request.params[row.item_index - first]
            error = LineError(code=code, message=words_of_failure(param, code, detail), param=param)
            return AnsweredLine(**named, error=error)
    if len(rows) < len(request.params):
        code, message = _NOT_RUN[ending]
        return AnsweredLine(**named, error=LineError(code=code, message=message))
    try:
        if policy is not None and rows[0].decided is not None:
            body: BaseModel = moderation_answer(policy, rows[0].decided)
        else:
            body = _body(endpoint, model, request, rows)
    except ApiError as error:
        wrong = LineError(code=error.code or "invalid_request", message=error.message, param=error.param)
        return AnsweredLine(**named, error=wrong)
    return AnsweredLine(**named, response=LineResponse(request_id=request_id, body=body))


def _body(endpoint: Endpoint, model: str, request: KeptRequest, rows: Sequence[Row]) -> BaseModel:
    """The body that the endpoint would have answered with."""
    if endpoint is Endpoint.ZERO_SHOT:
        return zero_shot_answer(rows[0].labels, rows[0].scores)
    asked = EmbeddingsRequest(
        model=model, input="-", encoding_format=request.encoding_format, dimensions=request.dimensions
    )
    return embedding_answer(asked, model, [row.vector for row in rows if row.vector is not None])
