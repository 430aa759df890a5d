"""Which chunks of a job have their part, as its output shows them: a retry or rebuild begins with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from clipfleet import keys
from clipfleet.contract import Job
from clipfleet.errors import OutputDamagedError, OutputUnavailableError
from clipfleet.outputs import Output
from clipfleet.part_files import part_files
from clipfleet.parts import PartCounts, PartIdentity
from clipfleet.read_ahead import read_ahead

IsDone = Callable[[PartIdentity, PartCounts], bool]


@dataclass(frozen=True, slots=True)
class Inventory:
    """The chunks of one job: those that are done, and those that are not."""

    done: bytes  # bitmap; chunk 0 is the highest bit of the first byte
    due: tuple[int, ...]  # chunks below `next_chunk` without a part, or with one that is to be replaced
    next_chunk: int  # behind the last part
    counts: PartCounts  # rows of the chunks that are done
    generation: int  # of the newest part, 0 if there is none
    chunks: int  # of the job

    @property
    def open_chunks(self) -> int:
        """Chunks that are not done."""
        return len(self.due) + self.chunks - self.next_chunk


def take_inventory(
    parts: Iterable[tuple[PartIdentity, PartCounts]], chunks: int, is_done: IsDone
) -> Inventory:
    """Look at every part of a job.

    Args:
        parts: those that are in place, in any order.
        chunks: how many are staged; parts beyond them must not be among `parts`.
        is_done: whether a part may stay as it is.
    """
    done, found = bytearray(-(-chunks // 8)), bytearray(chunks)
    ok = failed = generation = 0
    codes: Counter[str] = Counter()
    for identity, counts in parts:
        found[identity.chunk_id] = 1
        generation = max(generation, identity.generation)
        if is_done(identity, counts):
            done[identity.chunk_id // 8] |= 0x80 >> identity.chunk_id % 8
            ok, failed = ok + counts.ok, failed + counts.failed
            codes.update(counts.codes)
    next_chunk = found.rfind(1) + 1
    due = tuple(chunk for chunk in range(next_chunk) if not done[chunk // 8] & 0x80 >> chunk % 8)
    return Inventory(bytes(done), due, next_chunk, PartCounts(ok, failed, dict(codes)), generation, chunks)


def parts_in_place(output: Output, job: Job, chunks: int) -> Iterator[tuple[PartIdentity, PartCounts]]:
    """The footers of a job's parts below the given number of chunks.

    Raises:
        OutputConflictError: there is a part of another chunk.
        OutputDamagedError: there is a part that cannot be read.
        OutputUnavailableError: the output cannot be read now.
    """
    depth = part_files(job.part_format, job.job_id).footer_readers
    found = read_ahead(partial(_footer, output, job), _chunk_ids(output, job, chunks), depth=depth)
    return (part for part in found if part is not None)


def _chunk_ids(output: Output, job: Job, chunks: int) -> Iterator[int]:
    """Chunks below the given number that have a part."""
    suffix = f".{job.part_format}"
    for name in output.names(keys.PART_PREFIX):
        digits = name.removeprefix(keys.PART_PREFIX).removesuffix(suffix)
        if name.endswith(suffix) and digits.isdecimal() and int(digits) < chunks:
            yield int(digits)


def _footer(output: Output, job: Job, chunk_id: int) -> tuple[PartIdentity, PartCounts] | None:
    """None for the late part of a job before this one: its chunk is done anew, and replaces it."""
    files = part_files(job.part_format, job.job_id)
    where = f"{output.uri}/{files.name(chunk_id)}"
    try:
        with files.open(output, files.name(chunk_id)) as part:
            identity, counts = part.footer()
    except FileNotFoundError as error:
        raise OutputUnavailableError(f"{where} was removed while it was read") from error
    except (ValueError, OutputDamagedError) as error:
        raise OutputDamagedError(
            f"{where} is not a whole part ({error}): remove it, then its chunk is done anew"
        ) from error
    if identity.job_id != job.job_id:
        return None
    identity.require(job.job_id, chunk_id, where)
    return identity, counts
