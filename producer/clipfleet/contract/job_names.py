"""Names of jobs that programs make for themselves, which no list of jobs shows. Imports nothing."""

from __future__ import annotations

# Of evaluations, replays, searches and requests of a gateway (`door`).
UNNAMED_PREFIXES = ("evaluate-images", "evaluate-texts", "replay-old", "replay-new", "search", "door")
UNNAMED_JOB_ID_PATTERN = rf"^({'|'.join(UNNAMED_PREFIXES)})-[0-9a-f]{{16}}(-[0-9a-f]{{6}})?$"
