"""`/v1/batches`: the batch as OpenAI writes it, and the lines of its files."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from clipfleet_gateway.shapes.bodies import Shape, StrictShape
from clipfleet_gateway.shapes.files import ExpirySeconds

MOST_BATCHES = 100  # of a list
_DEFAULT_BATCHES = 20
_MOST_PAIRS = 16
_IN_SECONDS = "in seconds since 1970; null: not so far"

Metadata = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64)],
        Annotated[str, Field(max_length=512)],
    ],
    Field(
        max_length=_MOST_PAIRS, description="notes of yours: at most 16 keys of 64 characters, values of 512"
    ),
]


class Endpoint(StrEnum):
    """What the requests of a batch may be sent to."""

    EMBEDDINGS = "/v1/embeddings"
    ZERO_SHOT = "/v1/zero-shot"
    MODERATIONS = "/v1/moderations"


class BatchStatus(StrEnum):
    """`validating -> in_progress -> finalizing -> completed`, or another end."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    # A line of the input file is wrong, so nothing was run; or no worker knows the model; or no results could
    # be written.
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the batch has ended."""
        return self in (self.COMPLETED, self.FAILED, self.EXPIRED, self.CANCELLED)

    @property
    def answers_again(self) -> bool:
        """Whether a batch still answers a repeated request for it. Its owner has given up a cancelled one."""
        return not self.is_final and self is not self.CANCELLING


class OutputExpiresAfter(StrictShape):
    """When the output and error file are removed."""

    anchor: Literal["created_at"]
    seconds: Annotated[ExpirySeconds, Field(description="after the files were made")]


class BatchRequest(Shape):
    """Which requests to run."""

    input_file_id: Annotated[str, Field(description="a file of purpose `batch`, with a request in each line")]
    endpoint: Annotated[Endpoint, Field(description="where each of them would be sent to")]
    completion_window: Annotated[Literal["24h"], Field(description="after it, what is done is kept")]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None


class BatchError(Shape):
    """Why a batch has failed."""

    code: str
    line: Annotated[int | None, Field(description="of the input file, from 1; null: all of it")] = None
    message: str
    param: Annotated[str | None, Field(description="what of the line, such as `input[3]`")] = None


class BatchErrors(Shape):
    """What is wrong with the input file; after many errors the rest is not looked at."""

    object: Literal["list"] = "list"
    data: tuple[BatchError, ...]


class RequestCounts(Shape):
    """Lines by outcome. While a batch runs, an estimate if lines have several inputs."""

    total: int
    completed: int
    failed: int


class Batch(Shape):
    """A batch of the key."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: Annotated[str | None, Field(description="of all requests; null until they are validated")]
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: BatchStatus
    output_file_id: Annotated[
        str | None, Field(description="answers, in the order of the requests; null: none, or not yet")
    ]
    error_file_id: Annotated[
        str | None, Field(description="requests that failed or were not run; null: none, or not yet")
    ]
    created_at: Annotated[int, Field(description="in seconds since 1970")]
    in_progress_at: Annotated[int | None, Field(description=_IN_SECONDS)]
    expires_at: Annotated[int, Field(description="in seconds since 1970")]
    finalizing_at: Annotated[int | None, Field(description=_IN_SECONDS)]
    completed_at: Annotated[int | None, Field(description=_IN_SECONDS)]
    failed_at: Annotated[int | None, Field(description=_IN_SECONDS)]
    expired_at: Annotated[int | None, Field(description=_IN_SECONDS)]
    cancelling_at: Annotated[int | None, Field(description=_IN_SECONDS)]
    cancelled_at: Annotated[int | None, Field(description=_IN_SECONDS)]
    request_counts: RequestCounts
    usage: Annotated[None, Field(description="always null: images have no tokens")] = None
    metadata: Mapping[str, str] | None


class BatchesQuery(Shape):
    """Which batches to list."""

    after: Annotated[str | None, Field(description="id of the last batch of the page before")] = None
    limit: Annotated[int, Field(ge=1, le=MOST_BATCHES, description="batches of a page")] = _DEFAULT_BATCHES


class BatchList(Shape):
    """Some batches of the key, the newest first."""

    object: Literal["list"] = "list"
    data: tuple[Batch, ...]
    first_id: str | None
    last_id: str | None
    has_more: Annotated[bool, Field(description="whether a page follows: ask for it with `after`")]


class LineResponse(Shape):
    """The answer to a request."""

    status_code: Literal[200] = 200
    request_id: str
    body: Any


class LineError(Shape):
    """Why a request has no answer."""

    code: str
    message: str
    param: str | None = None  # which input, such as `input[3]`


class AnsweredLine(Shape):
    """A line of the output file, or of the error file."""

    id: str
    custom_id: str
    response: LineResponse | None = None
    error: LineError | None = None
