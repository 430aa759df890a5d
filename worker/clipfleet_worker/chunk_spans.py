"""The spans of one chunk: itself, as part of its job's submit, and in it one for each stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from clipfleet.ledger import Claim
from clipfleet.tracing import Attributes, Tracing


@contextmanager
def chunk_spans(tracing: Tracing, claim: Claim) -> Iterator[Callable[[str], None]]:
    """Around the work on a chunk. Gives a function to tell that a stage begins; it ends the one before it.

    A stage that is told again and again, as it gets on, is one.
    """
    about: Attributes = {
        "job_id": claim.job_id,
        "chunk_id": claim.chunk_id,
        "generation": claim.generation,
    }
    chunk = tracing.span("chunk", parent=claim.traceparent, attributes=about)
    present = ""
    with chunk as traceparent, ExitStack() as stage:

        def enter(name: str) -> None:
            nonlocal present
            if name != present:
                stage.close()
                present = name
                stage.enter_context(tracing.span(name, parent=traceparent))

        yield enter
