"""Notes of what a request has made, so that a repeated one makes nothing new: `asked/OWNER/KIND-HASH.json`.

Each holds the id of a batch or a job, which begins with the time when it was made.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Literal, get_args

from clipfleet.outputs import Output

KEPT = timedelta(days=30)
_TURN_SECONDS, _SLICES = 600, 256
_ID = re.compile(rb'"(?:batch|job)_([0-9a-f]{12})')  # with milliseconds since 1970

Kind = Literal["same", "key", "job"]


def note_of(owner: str, kind: Kind, wanted: str) -> str:
    """Name of the note of a request.

    Args:
        owner: name of a key.
        kind: `same`: of batches, by what they want; `key` and `job`: of batches and jobs, by Idempotency-Key.
        wanted: what makes two requests the same one.
    """
    return f"asked/{owner}/{kind}-{sha256(wanted.encode()).hexdigest()}.json"


def forget(place: Output, owner: str, now: datetime) -> None:
    """Remove old notes of an owner, among those of a 256th of all hashes. Idempotent.

    It is another one every ten minutes, so that no sweep reads all notes.
    """
    turn = int(now.timestamp()) // _TURN_SECONDS % _SLICES
    before_ms = (now - KEPT).timestamp() * 1000
    for kind in get_args(Kind):
        for name in place.names(f"asked/{owner}/{kind}-{turn:02x}"):
            found = _ID.search(place.read(name) or b"")
            if found is not None and int(found[1], 16) < before_ms:
                place.remove(name)
