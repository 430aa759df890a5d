"""An export reads the images of its rows from a real S3 store."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from clipfleet.contract.tar_member import TarMember
from clipfleet.exports import Layout, export
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from tests.support.jobs import make_job, place_job
from tests.support.rows import add_part, classified
from tests.support.s3 import S3Bucket
from tests.support.shards import tar_bytes

pytestmark = pytest.mark.long


def test_objects_and_members_of_archives_are_read(s3: S3Bucket, tmp_path: Path) -> None:
    # Given rows of an object, a member of an archive, and an object that is gone
    one, two = b"\xff\xd8\xff one", b"\xff\xd8\xff two"
    s3.put("images/ä 1.jpg", one)
    s3.put("images/b.tar", tar_bytes([("b.jpg", two)]))
    member = TarMember(f"{s3.uri}/images/b.tar", "b.jpg", 512, len(two)).uri()
    places = [(f"{s3.uri}/images/ä 1.jpg", one), (member, two), (f"{s3.uri}/images/gone.jpg", one)]
    rows = [
        {**classified(number), "uri": uri, "content_hash": hashlib.sha256(data).hexdigest()}
        for number, (uri, data) in enumerate(places)
    ]
    output = FolderOutput(tmp_path / "out")
    place_job(output, make_job(output.uri, task="classify", label_sets=({"labels": ["cat", "dog"]},)))
    add_part(output, 0, rows)

    # When they are exported
    counts = export(PartRows(output), Layout.WEBDATASET, tmp_path / "to")

    # Then the shard has the images that are there
    assert (counts.rows, counts.left_out) == (2, 1)
    with tarfile.open(tmp_path / "to" / "00000.tar") as shard:
        files = [shard.extractfile(f"{number:09d}.jpg") for number in range(2)]
        assert [None if file is None else file.read() for file in files] == [one, two]
