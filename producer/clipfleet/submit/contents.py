"""Checksum over the items of a source, to detect changes of the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import blake2b

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.parts import INLINE_COLUMN, VERSION_COLUMN, count_items
from clipfleet.sources.file_states import file_states

_MODULUS = 1 << 128
_hash = partial(blake2b, digest_size=16)
_JOINED_BYTES = 1 << 30  # the text of a batch must stay below 2 GiB
_SEPARATOR, _NULL = "\x1f", "\x1e"


class Contents:
    """Counts the items that pass through `counted`, and sums a hash of each, independent of order.

    The hash covers all columns of an item and the version of its file or object: size and mtime of a local
    file, else `parts.VERSION_COLUMN` of the source. Inline images are hashed; no other image is read.
    """

    def __init__(self) -> None:
        self.items = 0  # passed so far
        self._sum = 0

    @property
    def sum(self) -> str:
        """The sum as 32 hexadecimal digits."""
        return f"{self._sum:032x}"

    def counted(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pass the batches of a source through, without `VERSION_COLUMN`, which is not staged."""
        for batch in batches:
            self.items += count_items(batch)
            self._sum = (self._sum + _hash_sum(batch)) % _MODULUS
            yield batch.drop_columns([VERSION_COLUMN]) if VERSION_COLUMN in batch.schema.names else batch


def _hash_sum(batch: pa.RecordBatch) -> int:
    if batch.nbytes > _JOINED_BYTES and batch.num_rows > 1:
        half = batch.num_rows // 2
        return _hash_sum(batch.slice(0, half)) + _hash_sum(batch.slice(half))
    texts = pc.binary_join_element_wise(
        *_columns(batch), _SEPARATOR, null_handling="replace", null_replacement=_NULL
    )
    hashes = map(_hash, texts.cast(pa.binary()).to_pylist())
    return sum(map(int.from_bytes, [one.digest() for one in hashes]))


def _columns(batch: pa.RecordBatch) -> Iterator[pa.Array]:
    """What is hashed, as strings.

    Nested columns are left out: their text costs many times the rest, and only a Parquet file has them, whose
    size and time of change stand in the job's fingerprint.
    """
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        if name == INLINE_COLUMN:
            yield pa.array(
                [None if one is None else _hash(one).hexdigest() for one in values.to_pylist()], pa.string()
            )
        elif pa.types.is_string(values.type):
            yield values
        elif name != "item_index" and not pa.types.is_nested(values.type):
            yield pc.cast(values, pa.string())
    if "uri" not in batch.schema.names:  # of ranges
        return
    states = file_states(batch["uri"])
    if states is not None:
        yield states
