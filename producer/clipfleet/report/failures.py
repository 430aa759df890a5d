"""Failed rows by error code and by host, with examples."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.parts import ItemStatus
from clipfleet.report.samples import Smallest, uniform_keys

EXAMPLES = 8  # of each code
SHOWN_HOSTS = 100
_MOST_HOSTS = 50_000  # that are counted one by one
OTHERS, FILES = "other hosts", "local files"
_HOST = r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:[^/?#@]*@)?(?P<host>[^/?#]*)"


class Failures:
    """Counts of rows and failures."""

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self._names: list[str] = []
        self._items: Counter[str] = Counter()  # by host, all rows
        self._failed: dict[str, Counter[str]] = {}  # by host, then by code
        self.examples = Smallest(EXAMPLES)

    def add(self, batch: pa.RecordBatch) -> list[int]:
        """Count a batch; return the `item_index` of the rows that its examples take."""
        hosts = _hosts(batch["uri"])
        for entry in pc.value_counts(hosts).to_pylist():
            self._items[self._known(entry["values"])] += entry["counts"]
        is_failed = pc.equal(batch["status"], pa.scalar(ItemStatus.FAILED.value))
        failed = batch.filter(is_failed)
        if not failed.num_rows:
            return []
        codes = pc.fill_null(failed["error_code"], "unknown")
        for (host, code), count in Counter(
            zip(hosts.filter(is_failed).to_pylist(), codes.to_pylist(), strict=True)
        ).items():
            self.codes[code] += count
            self._failed.setdefault(self._known(host), Counter())[code] += count
        self._names += [code for code in self.codes if code not in self._names]
        indexes = failed["item_index"]
        return self.examples.add(
            pc.index_in(codes, value_set=pa.array(self._names, pa.string())),
            uniform_keys(indexes), indexes, pa.nulls(failed.num_rows, pa.float64()),
        )  # fmt: skip

    def _known(self, host: str) -> str:
        return host if host in self._items or len(self._items) < _MOST_HOSTS else OTHERS

    def summary(self) -> dict[str, Any]:
        """Codes with examples, and hosts with failures, both by the number of failures."""
        failing = sorted(self._failed, key=lambda host: (-self._failed[host].total(), host))
        return {
            "codes": [
                {
                    "code": code,
                    "count": count,
                    "items": [index for index, _ in self.examples.of(self._names.index(code))],
                }
                for code, count in self.codes.most_common()
            ],
            "hosts": [
                {"host": host, "items": self._items[host], "codes": dict(self._failed[host].most_common())}
                for host in failing[:SHOWN_HOSTS]
            ],
            "more_hosts": max(0, len(failing) - SHOWN_HOSTS),
            "all_hosts": len(self._items),
        }


def _hosts(uris: pa.Array) -> pa.Array:
    parts = pc.extract_regex(uris, _HOST)
    scheme, host = pc.utf8_lower(parts.field("scheme")), pc.utf8_lower(parts.field("host"))
    is_web = pc.is_in(scheme, value_set=pa.array(["http", "https"]))
    is_file = pc.equal(scheme, "file")
    named = pc.if_else(is_web, host, pc.binary_join_element_wise(scheme, host, "://"))
    named = pc.if_else(pc.or_kleene(pc.invert(parts.is_valid()), pc.fill_null(is_file, True)), FILES, named)
    return pc.fill_null(named, FILES)
