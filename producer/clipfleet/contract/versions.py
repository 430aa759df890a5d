"""Which versions of the contract this program writes and reads."""

from __future__ import annotations

SCHEMA_VERSION = 6
FIRST_WITH_DATA_FOLDER = 2  # rows in a folder of their own; `embedding` only where vectors are kept
FIRST_WITH_EXIF = 2  # images may be turned by their EXIF orientation
FIRST_WITH_THRESHOLDS = 3  # further keys and presets of label sets, and the column `accepted`
FIRST_WITH_HEADS = 4  # heads, and jobs over stored vectors
FIRST_WITH_STORES = 5  # jobs that fill a store, or label the vectors of one
FIRST_WITH_POLICIES = 6  # jobs that decide by a policy
READABLE_SCHEMA_VERSIONS = tuple(range(1, SCHEMA_VERSION + 1))


def lowest_version(
    *,
    output_is_redis: bool,
    applies_exif: bool,
    has_newer_label_sets: bool,
    has_heads_or_vectors: bool = False,
    has_a_store: bool = False,
    has_a_policy: bool = False,
) -> int:
    """The lowest version that can run a new job: older workers leave alone what they cannot run."""
    return max(
        1 if output_is_redis else FIRST_WITH_DATA_FOLDER,
        FIRST_WITH_EXIF if applies_exif else 1,
        FIRST_WITH_THRESHOLDS if has_newer_label_sets else 1,
        FIRST_WITH_HEADS if has_heads_or_vectors else 1,
        FIRST_WITH_STORES if has_a_store else 1,
        FIRST_WITH_POLICIES if has_a_policy else 1,
    )
