"""Labelling stored vectors again: a real server, a real worker, the demo model; the command line where it
matters, else the client, which does the same in less time.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest

from clipfleet.client import JobOptions
from clipfleet.contract.columns import VectorType, label_columns
from clipfleet.contract.heads import HeadInput
from clipfleet.contract.jobs import DecodeRoute, JobState, PartFormat
from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.parts import PART_COLUMNS
from clipfleet.errors import JobConflictError, OutputConflictError, UsageError
from clipfleet.job_handle import JobHandle
from clipfleet.ledger import keys
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.redis.connection import connect
from clipfleet.results.part_rows import PartRows
from clipfleet.results.rows import rows
from tests.support.cluster import Cluster, ends
from tests.support.heads import head_file
from tests.support.images import write_images
from tests.support.s3 import S3Bucket
from tests.support.vector_outputs import damage_vectors
from tests.support.version_1 import BROKEN, ITEMS, version_1_output

LABELS, OTHERS = ("red apple", "dog", "car", "house"), ("sea", "forest", "street")
COUNT, MISSING, WAIT = 9, 4, 300
KEPT = (
    "item_index", "item_id", "uri", "status", "error_code", "error_detail", "width", "height",
    "content_hash", "model_fingerprint", "shelf", "set",
)  # fmt: skip
SETS = (LabelSet(name="animals", labels=("cat", "dog")), LabelSet(name="places", labels=("sea", "forest")))


@dataclass(frozen=True)
class Origin:
    """Outputs of a list of nine images, one of which does not exist; the images are gone by now."""

    vectors: Path  # of a classify job that keeps vectors, in five parts
    forward: Path  # with other labels, by the images


def write_list(folder: Path) -> Path:
    """A list with two columns of its own."""
    path = folder / "list.csv"
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["path", "shelf", "set"])
        for number in range(COUNT):
            image = folder / "images" / f"{number:06d}.jpg"
            lines.writerow([image, f"shelf {number}", SETS[number % 2].name])
    return path


def remove_images(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        path.unlink()


def done(job: JobHandle, *, ok: int = COUNT - 1, failed: int = 1) -> Path:
    """Wait for a job with so many rows; returns its output."""
    status = job.wait(WAIT)
    assert (status.total, status.ok, status.failed) == (ok + failed, ok, failed), status
    return Path(job.output)


def options(**values: Any) -> JobOptions:
    return JobOptions(model="demo", decode=DecodeRoute.EXACT, **values)


@pytest.fixture(scope="module")
def origin(cluster: Cluster) -> Origin:
    folder = cluster.folder / "relabel"
    write_images(folder / "images", COUNT)
    (folder / "images" / f"{MISSING:06d}.jpg").unlink()
    source, client = write_list(folder), cluster.client
    kept = options(output=folder / "vectors", store_embeddings=True, chunk_size=2)
    vectors = client.classify(source, LABELS, options=kept)
    forward = client.classify(source, OTHERS, options=options(output=folder / "forward"))
    found = Origin(done(vectors), done(forward))
    remove_images(folder)
    return found


def stored(place: Path) -> list[dict[str, Any]]:
    return list(rows(PartRows(FolderOutput(place))))


def kept(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in KEPT} for row in found]


def test_other_labels_by_the_command(cluster: Cluster, folder: Path, origin: Origin) -> None:
    said = cluster.run("relabel", origin.vectors, "--labels", ",".join(OTHERS), "-o", folder / "again")

    assert said.returncode == 3, said.stderr
    assert f"Done: {COUNT - 1} labelled again, 1 failed" in said.stderr
    before, found = stored(origin.vectors), stored(folder / "again")
    assert list(found[0]) == [*(name for name in PART_COLUMNS if name != "embedding"), "shelf", "set"]
    assert kept(found) == kept(before)
    for row, forward in zip(found, stored(origin.forward), strict=True):
        assert row["labels"] == forward["labels"]
        if row["status"] == "ok":
            np.testing.assert_allclose(row["scores"], forward["scores"], atol=1e-3)
    manifest = json.loads((folder / "again" / "_manifest.json").read_text())
    assert (manifest["total"], manifest["schema_version"]) == (COUNT, 4)
    (line,) = (folder / "again" / "_errors.jsonl").read_text().splitlines()
    assert json.loads(line)["error_code"] == "not_found"
    job_id = manifest["job"]["job_id"]
    assert ends(cluster, job_id) == [("0", "completed_with_errors")]
    brief = next(one.brief for one in cluster.client.jobs() if one.job_id == job_id)
    assert brief is not None
    assert (brief.task, brief.source, brief.labels) == (
        "relabel", str(origin.vectors), "sea, forest, street",
    )  # fmt: skip


def test_several_sets_and_a_copy_of_the_vectors(cluster: Cluster, folder: Path, origin: Origin) -> None:
    copies = JobOptions(
        output=folder / "again", store_embeddings=True, part_format=PartFormat.JSONL,
        vector_type=VectorType.FLOAT32,
    )  # fmt: skip

    done(cluster.client.relabel(origin.vectors, SETS, top_k=1, options=copies))

    before, found = stored(origin.vectors), stored(folder / "again")
    columns = [column for one in SETS for column in label_columns(one.name)]
    assert [*found[0]] == [*PART_COLUMNS, *columns, "shelf", "set"]
    assert kept(found) == kept(before)
    for row, old in zip(found, before, strict=True):
        if old["embedding"] is None:
            assert row["embedding"] is None and row["labels_animals"] is None
        else:
            np.testing.assert_allclose(row["embedding"], old["embedding"], atol=1e-3)
            assert len(row["labels_animals"]) == len(row["labels_places"]) == 1
    # The copied vectors can be labelled again, too, and the replaced columns are gone.
    done(cluster.client.relabel(folder / "again", OTHERS, options=JobOptions(output=folder / "third")))
    third = stored(folder / "third")
    assert [*third[0]] == [*(name for name in PART_COLUMNS if name != "embedding"), "shelf", "set"]
    assert kept(third) == kept(before)


def test_a_column_of_the_source_names_the_set_of_each_item(
    cluster: Cluster, folder: Path, origin: Origin
) -> None:
    job = cluster.client.relabel(
        origin.vectors, SETS, label_set_column="set", options=JobOptions(output=folder / "again")
    )

    for row in stored(done(job)):
        if row["status"] == "ok":
            assert set(row["labels"]) == set(SETS[row["item_index"] % 2].labels)


def test_vectors_in_redis_and_rows_into_redis(cluster: Cluster, folder: Path) -> None:
    write_images(folder / "images", COUNT)
    (folder / "images" / f"{MISSING:06d}.jpg").unlink()
    client = cluster.client
    old = client.embed(write_list(folder), options=options(chunk_size=2))
    done(old)
    remove_images(folder)

    for output in (None, folder / "out"):
        job = client.relabel(old, OTHERS, options=JobOptions(output=output, store_embeddings=True))
        done(job)
        found = list(job.results())
        assert kept(found) == kept(list(old.results()))
        assert {row["label"] for row in found} <= {*OTHERS, None}
        indexes, matrix = job.vectors()
        np.testing.assert_allclose(matrix, old.vectors()[1], atol=1e-3)
        assert MISSING not in indexes
        brief = next(one.brief for one in client.jobs() if one.job_id == job.job_id)
        assert brief is not None and brief.source == f"redis://{old.job_id}"


def test_from_s3_into_s3(cluster: Cluster, folder: Path, s3: S3Bucket) -> None:
    write_images(folder / "images", COUNT)
    in_s3 = options(output=f"{s3.uri}/vectors", chunk_size=4, part_format=PartFormat.JSONL)
    old = cluster.client.embed(folder / "images", options=in_s3)
    done(old, ok=COUNT, failed=0)
    remove_images(folder)

    job = cluster.client.relabel(f"{s3.uri}/vectors/", OTHERS, options=JobOptions(output=f"{s3.uri}/again"))

    done(job, ok=COUNT, failed=0)
    found, before = list(job.results()), list(old.results())
    assert [row["content_hash"] for row in found] == [row["content_hash"] for row in before]
    assert {row["label"] for row in found} <= {*OTHERS}
    same = JobOptions(output=f"{s3.uri}/vectors", overwrite=True)
    with pytest.raises(UsageError, match="holds the vectors that are labelled again"):
        cluster.client.relabel(f"{s3.uri}/vectors", OTHERS, options=same)


def test_heads_with_and_without_labels(cluster: Cluster, folder: Path, origin: Origin) -> None:
    before = stored(origin.vectors)
    made_by = before[0]["model_fingerprint"]
    fitted = HeadInput(dim=128, model="demo", fingerprint=made_by)
    head = head_file(128, 3, input=fitted)

    both = JobOptions(output=folder / "both", store_embeddings=True)
    done(cluster.client.relabel(origin.vectors, OTHERS, heads=head, options=both))
    done(cluster.client.relabel(folder / "both", heads=head, options=JobOptions(output=folder / "alone")))

    for row, one in zip(stored(folder / "both"), stored(folder / "alone"), strict=True):
        assert (row["head_taste"], one["label"], one["labels"]) == (one["head_taste"], None, None)
        assert (row["head_taste"] is None) == (row["label"] is None) == (row["status"] == "failed")
    other = head_file(128, 3, input=HeadInput(dim=128, model="demo", fingerprint="f" * 16))
    again = JobOptions(output=folder / "again")
    with pytest.raises(UsageError, match="takes vectors of length 64, these have length 128"):
        cluster.client.relabel(origin.vectors, heads=head_file(64, 3), options=again)
    assert not (folder / "again").exists()
    ended = cluster.client.relabel(origin.vectors, heads=other, options=again).wait(WAIT)
    assert ended.state is JobState.FAILED
    assert f"head 'taste' is for vectors with the fingerprint {'f' * 16}" in str(ended.reason)


@pytest.mark.parametrize("name", ["embed", "jsonl"])
def test_an_output_of_version_1(cluster: Cluster, folder: Path, name: str) -> None:
    old = version_1_output(name, folder)

    job = cluster.client.relabel(old, OTHERS, options=JobOptions(output=folder / "again"))
    assert job.wait(WAIT).state is JobState.COMPLETED_WITH_ERRORS

    before, found = stored(old), stored(folder / "again")
    assert len(found) == ITEMS
    assert [row["item_id"] for row in found] == [row["item_id"] for row in before]
    assert found[BROKEN]["error_code"] == before[BROKEN]["error_code"]


class TestRepeated:
    def test_the_same_id_returns_the_job_that_has_ended(
        self, cluster: Cluster, folder: Path, origin: Origin
    ) -> None:
        again = JobOptions(output=folder / "again", job_id=f"again-{folder.name}"[:60])
        done(cluster.client.relabel(origin.vectors, OTHERS, options=again))

        second = cluster.client.relabel(origin.vectors, OTHERS, options=again)

        assert second.had_ended
        with pytest.raises(JobConflictError, match="label_sets"):
            cluster.client.relabel(origin.vectors, LABELS, options=again)

    def test_an_output_with_another_job_is_replaced_on_request(
        self, cluster: Cluster, folder: Path, origin: Origin
    ) -> None:
        done(cluster.client.relabel(origin.vectors, OTHERS, options=JobOptions(output=folder / "again")))
        with pytest.raises(OutputConflictError, match="`overwrite=True`"):
            cluster.client.relabel(origin.vectors, LABELS, options=JobOptions(output=folder / "again"))

        over = JobOptions(output=folder / "again", overwrite=True)
        done(cluster.client.relabel(origin.vectors, LABELS, options=over))

        assert {row["label"] for row in stored(folder / "again")} <= {*LABELS, None}

    def test_an_origin_that_was_retried_is_another_source(self, cluster: Cluster, folder: Path) -> None:
        write_images(folder / "images", COUNT)
        missing = folder / "images" / f"{MISSING:06d}.jpg"
        content = missing.read_bytes()
        missing.unlink()
        old = cluster.client.embed(write_list(folder), options=options(output=folder / "old"))
        done(old)
        again = JobOptions(output=folder / "again", job_id=f"again-{folder.name}"[:60])
        done(cluster.client.relabel(folder / "old", OTHERS, options=again))
        missing.write_bytes(content)
        assert old.retry()
        done(old, ok=COUNT, failed=0)

        with pytest.raises(JobConflictError, match="source"):
            cluster.client.relabel(folder / "old", OTHERS, options=again)

        fresh = cluster.client.relabel(folder / "old", OTHERS, options=JobOptions(output=folder / "fresh"))
        done(fresh, ok=COUNT, failed=0)

    def test_a_retry_without_the_vectors_is_refused_and_changes_nothing(
        self, cluster: Cluster, folder: Path
    ) -> None:
        write_images(folder / "images", COUNT)
        missing = folder / "images" / f"{MISSING:06d}.jpg"
        content = missing.read_bytes()
        missing.unlink()
        old = cluster.client.embed(write_list(folder), options=options(output=folder / "old", chunk_size=2))
        done(old)
        job = cluster.client.relabel(folder / "old", OTHERS, options=JobOptions(output=folder / "again"))
        done(job)
        before = stored(folder / "again")
        (folder / "old").rename(folder / "moved")

        said = cluster.run("retry", job.job_id)

        assert said.returncode == 2 and f"{folder / 'old'} are gone" in said.stderr, said.stderr
        assert (folder / "again" / "_SUCCESS").exists()
        assert job.status().state is JobState.COMPLETED_WITH_ERRORS
        (folder / "moved").rename(folder / "old")
        missing.write_bytes(content)
        assert old.retry()
        done(old, ok=COUNT, failed=0)
        assert job.retry()
        after = stored(done(job, ok=COUNT, failed=0))
        assert after[MISSING]["label"] in OTHERS
        assert [row for row in after if row["item_index"] != MISSING] == [
            row for row in before if row["item_index"] != MISSING
        ]

    @pytest.mark.parametrize("damaged", ["vectors", "all"])
    def test_a_damaged_part_is_made_again(self, cluster: Cluster, folder: Path, damaged: str) -> None:
        write_images(folder / "images", COUNT)
        old = cluster.client.embed(folder / "images", options=options(output=folder / "old", chunk_size=2))
        done(old, ok=COUNT, failed=0)
        part = folder / "old" / objects.LAYOUT.part(1)
        if damaged == "all":
            data = bytearray(part.read_bytes())
            data[4:1000] = bytes(996)
            part.write_bytes(data)
        else:
            damage_vectors(part)
        again = JobOptions(output=folder / "again", chunk_size=2)

        job = cluster.client.relabel(folder / "old", OTHERS, options=again)
        status = job.wait(WAIT)

        if damaged == "all":
            assert status.state is JobState.FAILED
            assert f"{part} is damaged: remove it, run `clipfleet retry {old.job_id}`" in status.reason
        else:
            assert (status.ok, status.failed, status.codes) == (COUNT - 2, 2, {"chunk_failed": 2})
            assert "damaged" in stored(folder / "again")[2]["error_detail"]
        part.unlink()
        assert old.retry()
        done(old, ok=COUNT, failed=0)
        assert job.retry()
        assert {row["label"] for row in stored(done(job, ok=COUNT, failed=0))} <= {*OTHERS}

    def test_a_job_that_redis_forgot_is_rebuilt_from_its_output(
        self, cluster: Cluster, folder: Path, origin: Origin
    ) -> None:
        job = cluster.client.relabel(origin.vectors, OTHERS, options=JobOptions(output=folder / "again"))
        done(job)
        before = stored(folder / "again")
        last = max((folder / "again" / "data").iterdir())
        last.unlink()
        with connect(cluster.server.url) as client:
            client.zrem(keys.JOBS, job.job_id)
            client.delete(*client.keys(f"*{{{job.job_id}}}*"))

        restored = cluster.client.rebuild(folder / "again")

        done(restored)
        assert last.exists() and ds.dataset(folder / "again" / "data").count_rows() == COUNT
        assert stored(folder / "again") == before


class TestRefusals:
    """Each before anything is written."""

    def test_at_the_command_line(self, cluster: Cluster, folder: Path, origin: Origin) -> None:
        before = stored(origin.vectors)

        said = cluster.run("relabel", origin.vectors, "--labels", "a,b", "-o", origin.vectors, "--overwrite")

        assert (said.returncode, said.stdout) == (2, "")
        assert said.stderr.startswith("error: ") and "choose another --output" in said.stderr
        assert stored(origin.vectors) == before
        said = cluster.run("relabel", folder / "nothing", "--labels", "a,b", "-o", folder / "again")
        assert said.returncode == 2 and "has this output" in said.stderr
        assert not (folder / "again").exists()

    def refused(self, cluster: Cluster, folder: Path, origin: Any, words: str, labels: Any = OTHERS) -> None:
        jobs = {one.job_id for one in cluster.client.jobs()}
        with pytest.raises(UsageError, match=words):
            cluster.client.relabel(origin, labels, options=JobOptions(output=folder / "again"))
        assert not (folder / "again").exists()
        assert {one.job_id for one in cluster.client.jobs()} == jobs

    def test_nothing_to_label_with(self, cluster: Cluster, folder: Path, origin: Origin) -> None:
        self.refused(cluster, folder, origin.vectors, "give labels, or `heads=`", labels=None)

    def test_an_output_without_vectors(self, cluster: Cluster, folder: Path, origin: Origin) -> None:
        self.refused(cluster, folder, origin.forward, "keeps no vectors")

    def test_vectors_of_texts(self, cluster: Cluster, folder: Path) -> None:
        job = cluster.client.embed_text(["a cat", "a dog"], options=JobOptions(model="demo"))
        done(job, ok=2, failed=0)

        self.refused(cluster, folder, job, "holds vectors of texts")

    def test_a_job_that_was_cancelled(self, cluster: Cluster, folder: Path) -> None:
        write_images(folder / "images", 2)
        job = cluster.client.embed(
            folder / "images", options=JobOptions(output=folder / "old", model="nobody:serves")
        )
        self.refused(cluster, folder, job, "has not finished: wait for it")
        job.cancel()
        self.refused(cluster, folder, folder / "old", "if it was cancelled")

    def test_a_column_of_the_source_that_a_set_would_fill(self, cluster: Cluster, folder: Path) -> None:
        write_images(folder / "images", 1)
        items = [{"path": str(folder / "images" / "000000.jpg"), "label_animals": "x"}]
        job = cluster.client.embed(items, options=JobOptions(model="demo"))
        done(job, ok=1, failed=0)

        self.refused(
            cluster, folder, job, "fill the column 'label_animals', which the source has too: rename", SETS
        )
