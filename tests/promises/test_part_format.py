"""What every format of parts promises, see `clipfleet.parts.PartFiles`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipfleet.contract.jobs import PartFormat
from clipfleet.contract.parts import PartCounts, PartIdentity, part_schema
from clipfleet.errors import OutputDamagedError
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.parts import PartFiles, part_files
from clipfleet.results import rows as results
from clipfleet.results.part_rows import PartRows
from tests.support.jobs import make_job, place_job

OURS = PartIdentity("job-a", 3, 0)
COUNTS = PartCounts(ok=1, failed=1, codes={"not_found": 1})

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
CODES = st.dictionaries(TEXT, st.integers(1, 9), max_size=3)
FLOAT = partial(st.floats, allow_nan=False, allow_infinity=False)
ROW = st.fixed_dictionaries(
    {"item_id": TEXT, "uri": TEXT, "status": st.sampled_from(["ok", "failed"])},
    optional={
        "error_code": st.sampled_from(["timeout", "empty"]),
        "label": TEXT,
        "score": FLOAT(width=32),
        "labels": st.lists(TEXT, max_size=3),
        "embedding": st.lists(FLOAT(width=16), min_size=2, max_size=2),
        "width": st.integers(1, 2**31 - 1),
        "note": TEXT,
    },
)


@pytest.fixture(params=PartFormat)
def files(request: pytest.FixtureRequest) -> PartFiles:
    return part_files(request.param, OURS.job_id)


@pytest.fixture
def output(tmp_path: Path) -> FolderOutput:
    return FolderOutput(tmp_path / "out")


def table(*values: dict[str, Any]) -> pa.Table:
    rows = [{"item_index": number, **row} for number, row in enumerate(values)]
    return pa.Table.from_pylist(rows, part_schema(2, [pa.field("note", pa.string())]))


def two_rows() -> pa.Table:
    ok = {"status": "ok", "embedding": [0.25, -1.0], "score": 0.1, "label": "a\u2028b"}
    return table(
        {"item_id": "0", "uri": "/a.jpg", "note": "007", **ok},
        {"item_id": "1", "uri": "/b.jpg", "status": "failed", "error_code": "not_found"},
    )


def put(
    files: PartFiles, output: FolderOutput, rows: pa.Table, identity: PartIdentity = OURS, ok: int = 1
) -> str:
    name = files.name(identity.chunk_id)
    with output.scratch() as path:
        files.write(output, path, identity, rows, replace(COUNTS, ok=ok))
        output.publish(path, name, replace=True)
    return name


def test_rows_identity_and_counts_come_back(files: PartFiles, output: FolderOutput) -> None:
    written = two_rows()
    name = put(files, output, written)

    assert (
        list(output.names(objects.LAYOUT.data)) == [name] == [objects.LAYOUT.part(3, name.rpartition(".")[2])]
    )
    with files.open(output, name) as part:
        assert part.footer() == (OURS, COUNTS)
        assert part.num_rows == 2
        assert part.schema.equals(written.schema)
        assert pa.Table.from_batches(part.batches()).equals(written)
        some = pa.Table.from_batches(part.batches(["status", "item_index"]))
        assert some.to_pylist() == written.select(["status", "item_index"]).to_pylist()


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, min_size=1, max_size=20), generation=st.integers(0, 5), codes=CODES)
def test_any_rows_come_back(
    files: PartFiles, tmp_path_factory: Any, rows: list[Any], generation: int, codes: dict[str, int]
) -> None:
    output, name = FolderOutput(tmp_path_factory.mktemp("out")), files.name(OURS.chunk_id)
    written, identity = table(*rows), replace(OURS, generation=generation)
    counts = PartCounts(len(rows), 0, codes)
    with output.scratch() as path:
        files.write(output, path, identity, written, counts)
        output.publish(path, name, replace=True)

    with files.open(output, name) as part:
        assert part.footer() == (identity, counts)
        assert pa.Table.from_batches(part.batches()).equals(written)


def test_many_rows_come_in_bounded_batches(files: PartFiles, output: FolderOutput) -> None:
    written = pa.concat_tables([two_rows()] * 2500)
    name = put(files, output, written)

    with files.open(output, name) as part:
        batches = list(part.batches())
    assert max(batch.num_rows for batch in batches) <= 4096
    assert pa.Table.from_batches(batches).equals(written.combine_chunks())


def test_a_part_that_is_missing_is_not_found(files: PartFiles, output: FolderOutput) -> None:
    with pytest.raises(FileNotFoundError), files.open(output, files.name(3)):
        pass


@pytest.mark.parametrize("data", [None, b"", b"{", b"PAR1", b"\xff\n", b"[1]\n", b'{"item_index": "many"}\n'])
def test_what_is_no_part_is_damaged(files: PartFiles, output: FolderOutput, data: bytes | None) -> None:
    name = put(files, output, two_rows())
    whole = output.read(name) or b""
    output.replace(name, whole[: len(whole) // 2] if data is None else data)

    with pytest.raises((OutputDamagedError, ValueError)), files.open(output, name) as part:
        part.footer()
        list(part.batches())


def test_a_part_copied_alone_has_its_rows(files: PartFiles, output: FolderOutput, tmp_path: Path) -> None:
    name = put(files, output, two_rows())
    part_format = PartFormat(name.rpartition(".")[2])
    place_job(output, make_job(output.uri, job_id=OURS.job_id, part_format=part_format))
    copied = FolderOutput(tmp_path / "elsewhere")
    copied.create(name, output.read(name) or b"")

    expected, stored = PartRows(output).read(), PartRows(copied).read()
    assert stored.schema.equals(expected.schema)
    assert list(stored.batches) == list(expected.batches)


def test_parts_without_a_model_have_the_schema_of_others(files: PartFiles, output: FolderOutput) -> None:
    part_format = PartFormat(files.name(0).rpartition(".")[2])
    place_job(output, make_job(output.uri, job_id=OURS.job_id, part_format=part_format))
    failed = {"item_index": 0, "item_id": "0", "uri": "/a.jpg", "status": "failed"}
    unknown = part_schema(1, [pa.field("note", pa.string())])
    first, second = (replace(OURS, chunk_id=chunk) for chunk in range(2))
    put(files, output, pa.Table.from_pylist([failed], unknown), first, ok=0)
    put(files, output, two_rows(), second)

    stored = PartRows(output).read()
    assert stored.schema.equals(two_rows().schema)
    found = list(results.rows(PartRows(output)))
    assert [one["uri"] for one in found] == ["/a.jpg", "/a.jpg", "/b.jpg"]
    assert [one["embedding"] for one in found] == [None, [0.25, -1.0], None]
    assert results.vectors(PartRows(output))[1].tolist() == [[0.25, -1.0]]
