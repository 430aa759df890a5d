"""The images that a store has, for the items of one chunk: equal ones need neither decoder nor model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from clipfleet.contract.stores import KNOWN_ETAG, KNOWN_HASH, KNOWN_LAST_MODIFIED
from clipfleet_worker.fetch.conditions import KnownImage
from clipfleet_worker.fetch.loop import FetchedSlice
from clipfleet_worker.outcomes import Outcomes, Validators
from clipfleet_worker.stores.equal_images import EqualImages


@dataclass(frozen=True, slots=True)
class StoredImages:
    """What the items of a chunk are compared with."""

    known: Mapping[int, KnownImage]  # what the store has of an item, by its position
    equal: EqualImages | None  # of all items; None: there are none, or this worker cannot look

    def settle(self, outcomes: Outcomes, files: FetchedSlice) -> FetchedSlice:
        """End the items whose images the store has; return the others.

        Raises:
            OutputUnavailableError: the store cannot be read now.
        """
        left: FetchedSlice = []
        for position, data in files:
            digest = outcomes.content_hashes[position] = hashlib.sha256(data).hexdigest()
            outcomes.sizes_bytes[position] = len(data)
            known = self.known.get(position)
            if known is not None and known.content_hash == digest:
                outcomes.keep(position, digest)
            else:
                left.append((position, data))
        if self.equal is None or not left:
            return left
        wanted = {position: outcomes.content_hashes[position] or "" for position, _ in left}
        found = self.equal.find(sorted({*wanted.values()}))
        for position, digest in wanted.items():
            if digest in found:
                outcomes.copy(position, found[digest])
        return [(position, data) for position, data in left if wanted[position] not in found]


def known_images(items: pa.Table) -> dict[int, KnownImage]:
    """What the store knows of the staged items of a chunk: those that it has."""
    columns = (items[name].to_pylist() for name in (KNOWN_HASH, KNOWN_ETAG, KNOWN_LAST_MODIFIED))
    return {
        position: KnownImage(content_hash, Validators(etag or "", last_modified or ""))
        for position, (content_hash, etag, last_modified) in enumerate(zip(*columns, strict=True))
        if content_hash
    }
