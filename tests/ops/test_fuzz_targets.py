"""Readers of what strangers wrote, fed with damage: only errors that their callers are promised come out.

The same targets as `make fuzz`, which runs each of them as often as one likes; here hypothesis chooses the
damage. What fuzzing has found stands below as it was found, or smaller.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipfleet.contract.versions import SCHEMA_VERSION
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS, worker_targets
from tests.support.shards import tar_bytes

FEW = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
ALL = worker_targets() | TARGETS
_DEEP = b"[" * 100_000
_LAUGHS = b"".join(b"k%d: &k%d [%s]\n" % (n, n, b", ".join([b"*k%d" % (n - 1)] * 9)) for n in range(1, 12))
_FOOTER = ALL["part.jsonl footer"].seeds()[0]


def _parquet_in_which(text: bytes, damage: bytes) -> bytes:
    """A table with a damage that no checksum notices."""
    buffer = io.BytesIO()
    table = pa.table({"url": ["first.jpg", "b.jpg"]})
    pq.write_table(table, buffer, compression="none", use_dictionary=False, store_schema=False)
    data = buffer.getvalue()
    assert text in data
    return data.replace(text, damage)


def _staged_by(job_id: str) -> bytes:
    buffer = io.BytesIO()
    footer = {"schema_version": str(SCHEMA_VERSION), "job_id": job_id, "first_chunk": "0"}
    pq.write_table(pa.table({"uri": ["a"]}).replace_schema_metadata(footer), buffer)
    return buffer.getvalue()


_STAGED_BY_ANOTHER = _staged_by("another\njob")


@pytest.mark.parametrize("name", [name for name in ALL if name != "image"])  # some of those are hostile
def test_the_seeds_are_read_without_complaint(name: str, tmp_path: Path) -> None:
    target = ALL[name]
    run = target.make(tmp_path)
    for data in target.seeds():
        assert target.outcome(run, data) == "ok"


@pytest.mark.parametrize("name", ALL)
def test_damage_gives_an_error_that_is_promised(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = ALL[name]
    run, seeds = target.make(tmp_path_factory.mktemp("fuzz")), target.seeds()

    @FEW
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        target.outcome(run, mutated(seeds, seed))

    check()


@pytest.mark.parametrize("name", [name for name in ALL if name != "image"])
@FEW
@given(data=st.one_of(st.binary(max_size=2000), st.text(max_size=500).map(lambda text: text.encode())))
def test_so_does_anything_at_all(name: str, data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = ALL[name]

    target.outcome(target.make(tmp_path_factory.mktemp("fuzz")), data)


@pytest.mark.parametrize(
    ("name", "data", "outcome"),
    [
        ("jsonl", b'{"url": "a.jpg", "o\\ud800k": 1}\n', "ok"),
        ("csv", b'a,"two\nlines"\n1,2\n', "SourceError"),
        ("tar", tar_bytes([("a.jpg", b"x"), ("a.txt", b"y" * 3000)])[:2600], "SourceError"),
        ("part.jsonl", b'{"item_index": 0, "o\\ud800k": 1}\n', "OutputDamagedError"),
        ("part.jsonl", b'{"item_index": %d}\n' % 2**70, "OutputDamagedError"),
        ("part.jsonl footer", _FOOTER.replace(b'"ok": "2"', b'"ok": 1e999'), "OutputDamagedError"),
        ("parquet", _parquet_in_which(b"url", b"u\xf2l"), "SourceError"),
        ("parquet", _parquet_in_which(b"first.jpg", b"first\xffjpg"), "ok"),
        ("part.parquet", b"PAR1" + bytes(20) + b"\x14\0\0\0PAR1", "OutputDamagedError"),
        ("staged items", b"PAR1" + bytes(20) + b"\x14\0\0\0PAR1", "OutputDamagedError"),
        ("staged items", _STAGED_BY_ANOTHER, "OutputUnreachableError"),
        ("part.jsonl", _DEEP + b"\n", "OutputDamagedError"),
        ("part.jsonl footer", _DEEP, "OutputDamagedError"),
        ("job.json", _DEEP, "JobUnreadableError"),
        ("_manifest.json", _DEEP, "OutputDamagedError"),
        ("errors.jsonl of an output", b'{"error_code": "timeout"}\n' + _DEEP + b"\n7\n", "ok"),
        ("label-set.yaml", b"k0: &k0 [x]\n" + _LAUGHS, "UsageError"),
        ("label-set.yaml", b"labels: &a [*a]", "UsageError"),
        ("label-set.yaml", b"- " * 5000, "UsageError"),
    ],
)
def test_what_fuzzing_has_found(name: str, data: bytes, outcome: str, tmp_path: Path) -> None:
    target = ALL[name]

    assert target.outcome(target.make(tmp_path), data) == outcome


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace(b'"schema": "', b'"schema": "*'),
        lambda text: text.replace(b'"schema"', b'"scheme"'),
        lambda text: text[:-40] + b'"}',
        lambda text: text.replace(b'"schema": "', b'"schema": ["').replace(b'"}', b'"]}'),
    ],
    ids=["no base64", "no schema", "cut schema", "no text"],
)
def test_a_footer_whose_schema_is_damaged(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    target = ALL["part.jsonl footer"]
    (footer,) = target.seeds()
    assert damage(footer) != footer

    assert target.outcome(target.make(tmp_path), damage(footer)) == "OutputDamagedError"
