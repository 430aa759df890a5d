"""Names of the objects of an output."""

from __future__ import annotations

import re
from dataclasses import dataclass

from clipfleet.contract.versions import FIRST_WITH_DATA_FOLDER

INTERNAL = "_clipfleet"
STAGED_PREFIX = f"{INTERNAL}/items-"
FOOTER_PREFIX = f"{INTERNAL}/footer-"
TMP = f"{INTERNAL}/tmp"  # noqa: S108 - a folder of the output, not of the machine
JOB_FILE = f"{INTERNAL}/job.json"
STAGED_FILES = (
    f"{INTERNAL}/staged.json"  # the staged files that the ledger may know, and whether these are all
)
HEAD_PREFIX = f"{INTERNAL}/head-"
GONE = f"{INTERNAL}/gone.arrow"  # of a job that fills a store: the items that the source has no more
GENERATION = f"{INTERNAL}/generation.json"  # the last retry that began
CLEARING = f"{INTERNAL}/clearing.json"  # the submit that is removing the results of the previous job
MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
# The caller that clears an output replaces or removes the first two itself, as its last step. A footer
# identifies a late part of the previous job; the sweep at the end of the job removes it.
KEPT_BY_CLEAR = (JOB_FILE, CLEARING, FOOTER_PREFIX)
_PART_NAME = re.compile(r"(data/)?part-\d{8,}\.(parquet|jsonl)")


@dataclass(frozen=True, slots=True)
class Layout:
    """Names that have changed; those of a job are of its schema version."""

    data: str  # folder of the parts; empty: the output itself
    errors: str  # failed rows, in the form of a list of items
    staged_suffix: str

    @property
    def part_prefix(self) -> str:
        """What the name of each part begins with."""
        return f"{self.data}part-"

    def part(self, chunk_id: int, part_format: str = "parquet") -> str:
        """Name of the result file of a chunk; the format is its extension."""
        return f"{self.part_prefix}{chunk_id:08d}.{part_format}"

    def staged_file(self, first_chunk: int, chunks: int) -> str:
        """Name of the staged items of `chunks` chunks from `first_chunk` on; one row group per chunk."""
        return f"{STAGED_PREFIX}{first_chunk:08d}-{chunks}{self.staged_suffix}"


# Every reader takes the folder `data` as it is, and no glob for Parquet files finds staged items.
LAYOUT = Layout("data/", "_errors.jsonl", ".staged")
FIRST_LAYOUT = Layout("", "errors.jsonl", ".parquet")
LAYOUTS = (LAYOUT, FIRST_LAYOUT)


def layout_of(schema_version: int) -> Layout:
    """Layout of the output of a job."""
    return FIRST_LAYOUT if schema_version < FIRST_WITH_DATA_FOLDER else LAYOUT


def head_file(sha256: str) -> str:
    """Name of the file of a head, by the hash of its content."""
    return f"{HEAD_PREFIX}{sha256}.safetensors"


def is_part(name: str) -> bool:
    """Whether a name is that of a part of some job, in any layout and format."""
    return _PART_NAME.fullmatch(name) is not None


def detached_footer(part_name: str, job_id: str, content_hash: str) -> str:
    """Name of the footer of a part whose format cannot hold one."""
    return f"{footer_prefix(part_name)}{job_id}-{content_hash}.json"


def footer_prefix(part_name: str) -> str:
    """What the names of the footers of a part begin with."""
    return f"{FOOTER_PREFIX}{part_name.rpartition('/')[2]}-"
