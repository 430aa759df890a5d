"""The items that a source has no more: a list beside the items of a job that fills a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from clipfleet.outputs import Output, objects
from clipfleet.outputs.folder import Confirm, unconditionally
from clipfleet.outputs.scratch import output_errors

# The digest is that of the row when its item was found to be gone.
_SCHEMA = pa.schema([pa.field("item_id", pa.string()), pa.field("digest", pa.int64())])


def write_gone(
    output: Output, batches: Iterable[pa.RecordBatch], *, confirm: Confirm = unconditionally
) -> int:
    """Place the list, in place of an earlier one; return its length. Idempotent."""
    count = 0
    with output.scratch() as path:
        with (
            output_errors(path),
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_file(file, _SCHEMA) as writer,
        ):
            for batch in batches:
                writer.write_batch(batch.cast(_SCHEMA))
                count += batch.num_rows
        output.publish(path, objects.GONE, replace=True, confirm=confirm)
    return count


def read_gone(output: Output) -> Iterator[pa.RecordBatch]:
    """`item_id` and `digest`, in batches; nothing where there is no list."""
    try:
        file = output.open(objects.GONE)
    except FileNotFoundError:
        return
    with file, pa.ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
