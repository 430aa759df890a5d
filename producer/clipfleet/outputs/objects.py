"""Names of the objects of an output."""

from __future__ import annotations

import re

INTERNAL = "_clipfleet"
STAGED_PREFIX = f"{INTERNAL}/items-"
FOOTER_PREFIX = f"{INTERNAL}/footer-"
TMP = f"{INTERNAL}/tmp"  # noqa: S108 - a folder of the output, not of the machine
JOB_FILE = f"{INTERNAL}/job.json"
STAGED_FILES = (
    f"{INTERNAL}/staged.json"  # the staged files that the ledger may know, and whether these are all
)
GENERATION = f"{INTERNAL}/generation.json"  # the last retry that began
CLEARING = f"{INTERNAL}/clearing.json"  # the submit that is removing the results of the previous job
MANIFEST = "_manifest.json"
ERRORS = "errors.jsonl"
SUCCESS = "_SUCCESS"
# The caller that clears an output replaces or removes the first two itself, as its last step. A footer
# identifies a late part of the previous job; the sweep at the end of the job removes it.
KEPT_BY_CLEAR = (JOB_FILE, CLEARING, FOOTER_PREFIX)
PART_PREFIX = "part-"
_PART_NAME = re.compile(rf"{PART_PREFIX}\d{{8,}}\.(parquet|jsonl)")
PART_GLOBS = {"parquet": f"{PART_PREFIX}*.parquet", "jsonl": f"{PART_PREFIX}*.jsonl"}  # by part format


def staged_file(first_chunk: int, chunks: int) -> str:
    """Name of the staged items of `chunks` chunks from `first_chunk` on; one row group per chunk."""
    return f"{STAGED_PREFIX}{first_chunk:08d}-{chunks}.parquet"


def part(chunk_id: int, part_format: str = "parquet") -> str:
    """Name of the result file of a chunk; the format is its extension."""
    return f"{PART_PREFIX}{chunk_id:08d}.{part_format}"


def is_part(name: str) -> bool:
    """Whether a name is that of a part of some job, in any format."""
    return _PART_NAME.fullmatch(name) is not None


def detached_footer(part_name: str, job_id: str, content_hash: str) -> str:
    """Name of the footer of a part whose format cannot hold one."""
    return f"{FOOTER_PREFIX}{part_name}-{job_id}-{content_hash}.json"
