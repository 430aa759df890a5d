"""Sources in a real S3 store, and workers' fetch of what they name."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.contract.jobs import ErrorCode
from clipfleet.contract.parts import INLINE_COLUMN
from clipfleet.errors import SourceError, SourceUnavailableError
from clipfleet.s3.client import connect, make_client
from clipfleet.sources import ReadOptions, open_source
from clipfleet.submit.contents import Contents
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.s3.boto import S3Limits
from clipfleet_worker.fetch.s3.fetcher import S3Fetcher
from tests.support.images import encoded, make_image
from tests.support.s3 import S3Bucket
from tests.support.shards import img2dataset_shard, tar_bytes


def items(uri: str, **options: str) -> list[dict[str, Any]]:
    opened = open_source(uri, ReadOptions(**options))
    table = pa.Table.from_batches(list(Contents().counted(opened.batches())))
    assert table["item_index"].to_pylist() == list(range(len(table)))
    carried = [name for name in table.column_names[3:] if name != INLINE_COLUMN]
    assert carried == list(opened.description.extra_columns)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def found(uri: str, **options: str) -> list[tuple[str, str]]:
    return [(row["item_id"], row["uri"]) for row in items(uri, **options)]


def problem(uri: str, **options: str) -> str:
    with pytest.raises(SourceError) as caught:
        list(open_source(uri, ReadOptions(**options)).batches())
    return str(caught.value)


def fetch(*uris: str, buckets: tuple[str, ...] = (), max_bytes: int = 1 << 20) -> list[Any]:
    """What a worker gets for each URI."""

    async def run() -> list[Any]:
        limits = S3Limits(max_image_bytes=max_bytes, fetch_timeout_seconds=60, connections=8)
        fetcher = S3Fetcher(limits, buckets, lambda: connect(attempts=1))
        await fetcher.start()
        try:
            calls = [(fetcher.fetch_member if uri.startswith("tar+") else fetcher.fetch)(uri) for uri in uris]
            answers = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await fetcher.close()
        return [one.error.code if isinstance(one, ItemFailure) else one for one in answers]

    return asyncio.run(run())


class TestListing:
    @pytest.fixture
    def bucket(self, s3: S3Bucket) -> S3Bucket:
        for key in ("a.jpg", "p/1.jpg", "p/2.PNG", "p/deep/ä b#1%.webp", "pq/3.jpg"):
            s3.put(key, b"x")
        for key in ("p/notes.txt", "p/.cache/x.jpg"):
            s3.put(key, b"x")
        return s3

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_all_images_below_a_prefix(self, bucket: S3Bucket, slash: str) -> None:
        assert sorted(found(f"{bucket.uri}/p{slash}")) == [
            (name, f"{bucket.uri}/p/{name}") for name in sorted(["1.jpg", "2.PNG", "deep/ä b#1%.webp"])
        ]
        assert open_source(f"{bucket.uri}/p{slash}").description.uri == f"{bucket.uri}/p/"

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_a_whole_bucket(self, bucket: S3Bucket, slash: str) -> None:
        assert {name for name, _ in found(bucket.uri + slash)} == {
            "a.jpg", "p/1.jpg", "p/2.PNG", "p/deep/ä b#1%.webp", "pq/3.jpg",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("p/*", ["1.jpg", "2.PNG", "notes.txt"]),
            ("p/**/*.webp", ["deep/ä b#1%.webp"]),
            ("**/*.jpg", ["a.jpg", "p/1.jpg", "pq/3.jpg"]),
            ("p?/*.jpg", ["pq/3.jpg"]),
        ],
    )
    def test_a_pattern(self, bucket: S3Bucket, pattern: str, expected: list[str]) -> None:
        assert sorted(name for name, _ in found(f"{bucket.uri}/{pattern}")) == sorted(expected)

    def test_one_image(self, bucket: S3Bucket) -> None:
        assert found(f"{bucket.uri}/p/1.jpg") == [("1.jpg", f"{bucket.uri}/p/1.jpg")]

    def test_more_keys_than_a_page_holds(self, s3: S3Bucket) -> None:
        for number in range(1010):
            s3.put(f"many/{number:04d}.jpg", b"x")

        assert sorted(name for name, _ in found(f"{s3.uri}/many/")) == [f"{n:04d}.jpg" for n in range(1010)]

    def test_what_is_not_there_is_named(self, bucket: S3Bucket) -> None:
        assert problem(f"{bucket.uri}/nowhere") == (
            f"{bucket.uri}/nowhere/: no images found; looked for keys that end in "
            ".jpg .jpeg .jpe .png .webp .gif .bmp .tif .tiff"
        )
        assert problem(f"{bucket.uri}/p/9.jpg") == f"{bucket.uri}/p/9.jpg: does not exist"
        assert problem(f"{bucket.uri}/list.csv") == f"{bucket.uri}/list.csv: does not exist"
        assert problem(f"{bucket.uri}/x*.jpg") == f"{bucket.uri}/x*.jpg: no object matches this pattern"
        assert "NoSuchBucket" in problem("s3://no-such-bucket-here/p/")
        assert "NoSuchBucket" in problem("s3://no-such-bucket-here/a.csv")
        assert "tables only" in problem(f"{bucket.uri}/p/", url_column="x")


class TestLists:
    @pytest.mark.parametrize(
        "name", ["l.txt", "l.csv", "l.tsv", "l.jsonl", "l.txt.gz", "l.csv.gz", "l.jsonl.gz", "l.parquet"]
    )
    def test_a_list_in_a_bucket_counts_relative_names_from_its_place(self, s3: S3Bucket, name: str) -> None:
        texts = {
            "txt": "1.jpg\nhttps://h/2.jpg\n",
            "csv": "url,n\n1.jpg,1\nhttps://h/2.jpg,2\n",
            "tsv": "url\tn\n1.jpg\t1\nhttps://h/2.jpg\t2\n",
            "jsonl": '{"url": "1.jpg", "n": 1}\n{"url": "https://h/2.jpg", "n": 2}\n',
        }
        if name == "l.parquet":
            buffer = io.BytesIO()
            pq.write_table(pa.table({"url": ["1.jpg", "https://h/2.jpg"], "n": [1, 2]}), buffer)
            data = buffer.getvalue()
        else:
            data = texts[name.split(".")[1]].encode()
        s3.put(f"lists/{name}", gzip.compress(data) if name.endswith(".gz") else data)

        assert found(f"{s3.uri}/lists/{name}") == [
            ("0", f"{s3.uri}/lists/1.jpg"),
            ("1", "https://h/2.jpg"),
        ]
        assert found(f"{s3.uri}/lists/{name}", base_uri="s3://other/x")[0] == ("0", "s3://other/x/1.jpg")

    def test_a_large_table_is_read_in_pieces(self, s3: S3Bucket) -> None:
        buffer = io.BytesIO()
        names = [f"{number * 2654435761 % 2**32:x}/{number}.jpg" for number in range(200_000)]
        pq.write_table(pa.table({"key": names, "n": range(200_000)}), buffer)
        s3.put("large.parquet", buffer.getvalue())

        rows = items(f"{s3.uri}/large.parquet", base_uri="s3://images")

        assert [row["uri"] for row in rows] == [f"s3://images/{name}" for name in names]
        assert [row["n"] for row in rows] == list(range(200_000))

    def test_a_list_that_is_replaced_while_it_is_read_is_refused(self, s3: S3Bucket) -> None:
        s3.put("l.txt", "".join(f"/{number}.jpg\n" for number in range(2_000_000)).encode())
        source = open_source(f"{s3.uri}/l.txt")
        batches = source.batches()
        next(batches)
        s3.put("l.txt", b"/other.jpg\n")

        with pytest.raises((SourceError, SourceUnavailableError), match=r"l\.txt: .*(replaced|changed)"):
            list(batches)
        with pytest.raises(SourceError, match="changed while it was read"):
            list(source.batches())
        assert open_source(f"{s3.uri}/l.txt").description != source.description

    def test_damaged_lists_are_named(self, s3: S3Bucket) -> None:
        assert "not a complete Parquet file" in problem(s3.put("a.parquet", b"PAR1 nothing"))
        assert "not a gzip file" in problem(s3.put("a.csv.gz", b"url\n"))
        assert "the object is empty" in problem(s3.put("a.csv", b""))

    def test_a_store_that_is_away_may_come_back(self, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
        monkeypatch.setattr("clipfleet.sources.s3.default_client", lambda: make_client(attempts=1))

        for uri in (f"{s3.uri}/p/", f"{s3.uri}/l.csv", f"{s3.uri}/1.tar"):
            with pytest.raises(SourceUnavailableError, match=s3.name):
                list(open_source(uri).batches())


class TestShards:
    def test_keys_and_json_are_carried_and_workers_read_the_images(self, s3: S3Bucket) -> None:
        for shard in range(3):
            s3.put(f"set/{shard:05d}.tar", img2dataset_shard(range(shard * 10, shard * 10 + 4)))
        s3.put("set/00000.parquet", b"x")
        s3.put("set/00000_stats.json", b"{}")
        keys = [shard * 10 + number for shard in range(3) for number in range(4)]

        for uri in ("set", "set/", "set/*.tar", "set/{00000..00002}.tar"):
            rows = items(f"{s3.uri}/{uri}")
            assert [row["item_id"] for row in rows] == [f"{key:09d}" for key in keys]
            assert [row["caption"] for row in rows] == [f"image {key}" for key in keys]
        assert fetch(*(row["uri"] for row in rows)) == [encoded(make_image(key)) for key in keys]

    def test_large_members_are_jumped_over(self, s3: S3Bucket) -> None:
        members = [(f"{number}.jpg", bytes([number]) * 9_000_000) for number in range(3)]
        uri = s3.put("large.tar", tar_bytes(members))

        assert [row["item_id"] for row in items(uri)] == ["0", "1", "2"]

    def test_a_shard_that_is_missing_or_damaged(self, s3: S3Bucket) -> None:
        whole = img2dataset_shard(range(4))
        s3.put("a/0.tar", whole)
        s3.put("a/1.tar", whole[:-20_000])

        assert problem(f"{s3.uri}/a/{{0..2}}.tar").startswith(f"{s3.uri}/a/1.tar: ")
        assert problem(f"{s3.uri}/a/9.tar") == f"{s3.uri}/a/9.tar: does not exist"
        assert "no object matches" in problem(f"{s3.uri}/a/x*.tar")


class TestFetch:
    def test_images_and_what_is_none(self, s3: S3Bucket) -> None:
        good = s3.put("a b/ü#1%25?.jpg", b"picture")
        large = s3.put("large", b"x" * 3_000_000)

        assert fetch(good, s3.put("empty", b""), f"{s3.uri}/gone", "s3://no-such-bucket-here/x", large) == [
            b"picture", b"", ErrorCode.NOT_FOUND, ErrorCode.NOT_FOUND, ErrorCode.TOO_MANY_BYTES,
        ]  # fmt: skip
        assert fetch(large, max_bytes=3_000_000) == [b"x" * 3_000_000]
        assert fetch(good, buckets=("other",)) == [ErrorCode.BUCKET_REFUSED]

    def test_a_wrong_secret(self, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        uri = s3.put("x", b"1")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")

        assert fetch(uri) == [ErrorCode.ACCESS_DENIED]

    def test_a_store_that_is_away(self, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")

        assert fetch(f"{s3.uri}/x") == [ErrorCode.CONNECT_FAILED]

    def test_many_at_once(self, s3: S3Bucket) -> None:
        uris = [s3.put(f"{number}", f"content {number}".encode()) for number in range(100)]

        assert fetch(*uris) == [f"content {number}".encode() for number in range(100)]


def test_errors_of_a_job_are_an_input_for_the_next(s3: S3Bucket) -> None:
    failed = {
        "item_index": 4, "item_id": "a", "uri": f"{s3.uri}/x.jpg", "error_code": "timeout",
        "error_detail": "late", "shelf": 3,
    }  # fmt: skip
    s3.put("out/errors.jsonl", (json.dumps(failed) + "\n").encode())

    assert items(f"{s3.uri}/out/errors.jsonl") == [
        {"item_index": 0, "item_id": "a", "uri": f"{s3.uri}/x.jpg", "shelf": 3}
    ]
