"""Loads things of a remote store several at a time, as each costs round trips; hands them out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Name = TypeVar("Name")
Loaded = TypeVar("Loaded")


def read_ahead(
    load: Callable[[Name], Loaded], names: Iterable[Name], *, depth: int
) -> Generator[Loaded, None, None]:
    """`load(name)` for each name, in order.

    The first one is loaded alone, so who wants no more of them does not pay for more; then twice as many are
    under way after each one that is taken, up to `depth`. What `load` raises is raised in its turn, and what
    comes after it is dropped.

    Args:
        load: called in other threads.
        names: taken no faster than needed.
        depth: the most calls under way, or done and not taken yet.
    """
    left = iter(names)
    under_way: deque[Future[Loaded]] = deque()
    wanted = 1
    with ThreadPoolExecutor(depth, thread_name_prefix="read-ahead") as pool:
        try:
            while True:
                under_way.extend(pool.submit(load, name) for name in islice(left, wanted - len(under_way)))
                if not under_way:
                    return
                yield under_way.popleft().result()
                wanted = min(2 * wanted, depth)
        finally:
            for call in under_way:
                call.cancel()
