"""The lines of an input file: what each asks for, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import ValidationError
from pydantic_core import from_json

from clipfleet.sources.lists.lines import BOM
from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.inputs.asked import Asked
from clipfleet_gateway.inputs.embeddings import asked_of_embedding
from clipfleet_gateway.inputs.moderations import asked_of_moderation, by_policy
from clipfleet_gateway.inputs.zero_shot import asked_of_zero_shot
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.policies.stored import StoredPolicy
from clipfleet_gateway.shapes.batches import BatchError, Endpoint
from clipfleet_gateway.shapes.bodies import problem_of, require_few_values
from clipfleet_gateway.shapes.embeddings import EmbeddingsRequest, EncodingFormat
from clipfleet_gateway.shapes.moderations import ModerationRequest
from clipfleet_gateway.shapes.zero_shot import ZeroShotRequest

MOST_LINE_BYTES = 64 << 20  # as much as the body of a request
MOST_ID_CHARACTERS = 512
_READ_BYTES = 1 << 20


class LineError(Exception):
    """A line that makes the batch fail."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def at(self, line: int | None) -> BatchError:
        """The error of this line."""
        return BatchError(code=self.code, line=line, message=self.message, param=self.param)


@dataclass(frozen=True, slots=True)
class Request:
    """A request of a batch."""

    custom_id: str
    asked: Asked
    encoding_format: EncodingFormat = EncodingFormat.FLOAT
    dimensions: int | None = None  # that the vectors must have


@dataclass(frozen=True, slots=True)
class Reading:
    """Whose lines are read, and what names in them mean."""

    endpoint: Endpoint  # of the batch
    key: Key  # of its owner
    default_model: str | None  # of requests that need not name one; None: they must
    policy_of: Callable[[str | None], StoredPolicy]  # of a model that is a policy; raises `ApiError`


def lines_of(content: pa.NativeFile) -> Iterator[bytes]:
    """The lines of a file, without their ends and a byte order mark; one that is too long is the last one."""
    rest, piece = b"", content.read(_READ_BYTES).removeprefix(BOM)
    while piece:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        if len(rest) > MOST_LINE_BYTES:
            break
        piece = content.read(_READ_BYTES)
    if rest:
        yield rest


def request_of(line: bytes, reading: Reading) -> Request:
    """What a line asks for.

    Raises:
        LineError: the line is wrong.
    """
    found = _object(line)
    custom_id = found.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise LineError("missing_custom_id", "custom_id must be a text that is not empty", "custom_id")
    if len(custom_id) > MOST_ID_CHARACTERS:
        raise LineError(
            "invalid_custom_id", f"custom_id has more than {MOST_ID_CHARACTERS} characters", "custom_id"
        )
    if found.get("method") != "POST":
        raise LineError("invalid_method", "method must be POST", "method")
    if found.get("url") != reading.endpoint:
        raise LineError("invalid_url", f"url must be that of the batch, {reading.endpoint}", "url")
    if not isinstance(found.get("body"), dict):
        raise LineError("invalid_body", "body must be a JSON object", "body")
    try:
        return _PARSERS[reading.endpoint](custom_id, found["body"], reading)
    except ValidationError as error:
        problem = problem_of(error)
    except ApiError as error:
        problem = error
    raise LineError(problem.code or "invalid_request", problem.message, problem.param)


def _object(line: bytes) -> dict[str, Any]:
    if len(line) > MOST_LINE_BYTES:
        most = MOST_LINE_BYTES >> 20
        raise LineError("line_too_long", f"The line has more than {most} MiB: upload its images as files")
    if not line.strip():
        raise LineError("blank_line", "The line is blank")
    try:
        require_few_values(line)
    except ApiError as error:
        raise LineError(str(error.code), error.message) from None
    try:
        line.decode()
    except UnicodeDecodeError:
        raise LineError("invalid_utf8", "The line is not UTF-8") from None
    try:
        found = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        problem = str(error).replace(" at line 1 column ", " at column ")
        raise LineError("invalid_json_line", f"The line is not JSON: {problem}") from None
    if not isinstance(found, dict):
        raise LineError("invalid_json_line", "The line is not a JSON object")
    return found


def _embedding(custom_id: str, body: dict[str, Any], reading: Reading) -> Request:
    parsed = EmbeddingsRequest.model_validate(body)
    asked = asked_of_embedding(parsed, reading.key)
    return Request(custom_id, asked, parsed.encoding_format, parsed.dimensions)


def _zero_shot(custom_id: str, body: dict[str, Any], reading: Reading) -> Request:
    parsed = ZeroShotRequest.model_validate(body)
    if parsed.model is None:
        parsed = parsed.model_copy(update={"model": reading.default_model})
    return Request(custom_id, asked_of_zero_shot(parsed, reading.key))


def _moderation(custom_id: str, body: dict[str, Any], reading: Reading) -> Request:
    parsed = ModerationRequest.model_validate(body)
    asked = asked_of_moderation(parsed, reading.key)
    return Request(custom_id, by_policy(asked, reading.policy_of(parsed.model)))


_PARSERS: dict[Endpoint, Callable[[str, dict[str, Any], Reading], Request]] = {
    Endpoint.EMBEDDINGS: _embedding,
    Endpoint.ZERO_SHOT: _zero_shot,
    Endpoint.MODERATIONS: _moderation,
}
