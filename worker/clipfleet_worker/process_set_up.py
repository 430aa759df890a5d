"""What a worker asks of Python and Arrow for its whole process, once.

Each of these saves time per image, and changes no result; `python -m ops.bench.overhead` shows it. Nothing of
ours, and no Arrow, is imported here: the first one has to come before.
"""

from __future__ import annotations

import gc
import os

# By Python's own number, 700, it would look for cycles every few pictures, which make none.
_NEW_OBJECTS_PER_COLLECTION = 20_000


def choose_allocator() -> None:
    """Have Arrow take its memory from malloc; to be called before it is imported.

    mimalloc, its own choice, keeps pages for each thread and gives them back soon. Parts are written by many
    threads: the kernel clears pages of 2 MiB all the time then, for as long as half a small picture takes.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def calm_collector() -> None:
    """Have Python look for cycles less often; to be called with the modules loaded, and no model."""
    gc.collect()
    gc.freeze()  # modules stay: 200,000 objects that no collection needs to look at; a model may go
    gc.set_threshold(_NEW_OBJECTS_PER_COLLECTION)
