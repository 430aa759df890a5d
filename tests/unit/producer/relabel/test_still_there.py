"""Before a job over stored vectors is resumed: whether they are all there."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import pytest

from clipfleet.contract.jobs import REDIS_OUTPUT, Job
from clipfleet.errors import OutputUnavailableError, UsageError
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.relabel.origin import origin_of_store
from clipfleet.relabel.still_there import require_vectors
from clipfleet.results.store_rows import store_rows
from clipfleet.store.dataset import remove_dataset
from tests.support.jobs import make_job, place_job
from tests.support.store_rows import FINGERPRINT, item, make_store
from tests.support.vector_outputs import stored_output, vectors_of

STORE = cast(RedisStore, None)


@pytest.fixture
def job(output: FolderOutput) -> Job:
    earlier = stored_output(output, job_id="old")
    return make_job("/new", job_id="new", labels=("a", "b"), vectors=vectors_of(earlier))


def test_all_are_there(job: Job) -> None:
    require_vectors(job, STORE)


def test_a_job_of_images_has_none() -> None:
    require_vectors(make_job("/new"), STORE)


def test_the_output_is_gone(job: Job, output: FolderOutput) -> None:
    shutil.rmtree(output.uri)

    with pytest.raises(UsageError, match=rf"of job old, and its vectors at {output.uri} are gone"):
        require_vectors(job, STORE)


def test_one_part_is_gone(job: Job, output: FolderOutput) -> None:
    output.remove(objects.LAYOUT.part(1))

    with pytest.raises(UsageError, match=r"not complete .*missing"):
        require_vectors(job, STORE)


def test_the_earlier_job_runs_again(job: Job, output: FolderOutput) -> None:
    output.remove(objects.SUCCESS)

    with pytest.raises(UsageError, match=r"has not finished .* wait for it first, with `clipfleet watch`$"):
        require_vectors(job, STORE)


def test_another_job_has_the_output(job: Job, output: FolderOutput) -> None:
    output.remove(objects.JOB_FILE)
    place_job(output, make_job(output.uri, job_id="other"))

    with pytest.raises(UsageError, match="holds job other by now, not old"):
        require_vectors(job, STORE)


def test_a_store_that_is_away_may_come_back(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderOutput, "read", Mock(side_effect=OutputUnavailableError("stale handle")))

    with pytest.raises(OutputUnavailableError, match="stale handle"):
        require_vectors(job, STORE)


@pytest.mark.parametrize("has_rows", [True, False])
def test_rows_in_redis_may_have_expired(job: Job, has_rows: bool) -> None:
    assert job.vectors is not None
    vectors = job.vectors.model_copy(update={"uri": REDIS_OUTPUT})
    job, store = job.model_copy(update={"vectors": vectors}), Mock(spec=RedisStore)
    store.has_rows.return_value = has_rows
    store.job.return_value = None

    if has_rows:
        require_vectors(job, store)
        return
    with pytest.raises(UsageError, match="have expired"):
        require_vectors(job, store)


def test_rows_in_redis_of_another_job_of_the_same_id(job: Job) -> None:
    assert job.vectors is not None
    vectors = job.vectors.model_copy(update={"uri": REDIS_OUTPUT})
    job, store = job.model_copy(update={"vectors": vectors}), Mock(spec=RedisStore)
    store.job.return_value = make_job(job_id="old", created_at=vectors.created_at + timedelta(hours=1))

    with pytest.raises(UsageError, match="holds another job of the same id by now"):
        require_vectors(job, store)


class TestStores:
    @pytest.fixture
    def job(self, tmp_path: Path) -> Job:
        vectors = origin_of_store(store_rows(make_store(tmp_path / "store", [item("a")]))).vectors
        return make_job("/new", job_id="new", labels=("a", "b"), vectors=vectors)

    def test_the_version_is_there(self, job: Job) -> None:
        require_vectors(job, STORE)

    def test_the_version_was_removed(self, job: Job) -> None:
        assert job.vectors is not None
        remove_dataset(f"{job.vectors.uri}/{FINGERPRINT}.lance")

        with pytest.raises(UsageError, match=r"of version 2 of the store, and .* version was removed"):
            require_vectors(job, STORE)
