"""Commands of stores that take locks or ask for jobs, with a real Redis, in a folder and in S3."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipfleet import commands as cli
from clipfleet.contract.stores import StoreTarget
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.locks import Locks
from clipfleet.outputs import open_output
from clipfleet.store.committing.of_job import lock_name
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.maintenance import holding
from clipfleet.store.place import STORE_FILE, EmbeddedBy, StorePlace, store_place
from tests.support.jobs import make_job
from tests.support.ledger import add_job
from tests.support.s3 import S3Bucket
from tests.support.store_rows import LISTED_AT, NO_ADDRESSES, item, stored_rows

MINE = "a" * 16
Run = Callable[..., tuple[int, Any, str]]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePlace:
    """A store with 300 vectors."""
    if request.param == "folder":
        uri = str(tmp_path / "store")
    else:
        bucket: S3Bucket = request.getfixturevalue("s3")
        uri = f"{bucket.uri}/store"
    place = store_place(uri)
    place.create(EmbeddedBy(model="demo", fingerprint=MINE, dimension=4))
    rows = stored_rows([item(str(number)) for number in range(300)])
    vectors = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float16)
    column = rows.schema.get_field_index("embedding")
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4)
    rows = rows.set_column(column, rows.schema.field(column), flat)
    VectorDataset.create(place.dataset_uri(MINE), rows.schema).replace(NO_ADDRESSES, rows.to_batches(), {})
    return place


@pytest.fixture
def run(redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `clipfleet store WORDS --json`; returns its exit code, the object that it prints, and stderr."""
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", redis_url)

    def run(*words: str) -> tuple[int, Any, str]:
        monkeypatch.setattr(sys, "argv", ["clipfleet", "store", *words, "--json"])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets one of its own
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), json.loads(captured.out or "null"), captured.err

    return run


def test_an_index_is_built_and_its_recall_printed(run: Run, place: StorePlace) -> None:
    code, found, _ = run("index", place.uri)

    assert (code, found["store"], found["version"]) == (0, place.uri, 3)
    assert (found["kind"], found["rows"], found["queries"]) == ("IVF_SQ", 300, 100)
    assert found["recall_at_10"] > 0.9
    assert found["bytes"] > 0
    info = run("info", place.uri)[1]
    assert info["index"] == {"kind": "IVF_SQ", "rows": 300, "bytes": found["bytes"]}
    assert run("log", place.uri)[1]["versions"][0]["kind"] == "index"


def test_an_index_waits_for_another_writer(
    run: Run, place: StorePlace, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one gives its lock back after the first look."""
    held = Locks(redis_url).held(lock_name(place.read().store_id))
    held.__enter__()
    monkeypatch.setattr(holding.time, "sleep", lambda _: held.__exit__(None, None, None))

    code, found, err = run("index", place.uri)

    assert (code, found["version"]) == (0, 3)
    assert "waiting for another program that writes to the store" in err


def test_info_names_the_jobs_that_fill_the_store(run: Run, place: StorePlace, ledger: Ledger) -> None:
    store_id = place.read().store_id
    for job_id, owner in (("mine", store_id), ("other", "f" * 32)):
        target = StoreTarget(uri=place.uri, store_id=owner, listed_at=LISTED_AT)
        add_job(ledger, job=make_job(place.job_output(job_id), job_id=job_id, store=target))

    code, found, _ = run("info", place.uri)

    assert (code, found["jobs"], found["rows"]) == (0, ["mine"], 300)
    assert datetime.fromisoformat(found["created_at"]) == place.read().created_at


def test_vectors_without_a_description_are_said(place: StorePlace, run: Run) -> None:
    open_output(place.uri).remove(STORE_FILE)

    code, _, said = run("info", place.uri)

    assert (code, f"{STORE_FILE} is gone, though {MINE}.lance is there" in said) == (1, True)


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_a_mistake(run: Run) -> None:
    code, _, said = run("info", "s3://no-such-bucket-here/store")

    assert (code, "NoSuchBucket" in said, "create the bucket, or name another" in said) == (2, True, True)
