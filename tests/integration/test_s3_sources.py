"""Sources in a real S3 store; what workers fetch of them is in test_fetch_s3.py."""

from __future__ import annotations

import gzip
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.backfill.opening import listed_source
from clipfleet.backfill.options import BackfillOptions
from clipfleet.errors import SourceError, SourceUnavailableError, UsageError
from clipfleet.s3.client import make_client
from clipfleet.sources import open_source
from tests.support.s3 import S3Bucket
from tests.support.shards import img2dataset_shard, tar_bytes
from tests.support.sources import ids, items, problem, uris


class TestListing:
    @pytest.fixture
    def bucket(self, s3: S3Bucket) -> S3Bucket:
        for key in ("a.jpg", "p/1.jpg", "p/2.PNG", "p/deep/ä b#1%.webp", "pq/3.jpg"):
            s3.put(key, b"x")
        for key in ("p/notes.txt", "p/.cache/x.jpg"):
            s3.put(key, b"x")
        return s3

    @pytest.mark.parametrize(
        ("name", "expected"),
        {
            "/p": ["1.jpg", "2.PNG", "deep/ä b#1%.webp"],
            "/p/": ["1.jpg", "2.PNG", "deep/ä b#1%.webp"],
            "": ["a.jpg", "p/1.jpg", "p/2.PNG", "p/deep/ä b#1%.webp", "pq/3.jpg"],
            "/": ["a.jpg", "p/1.jpg", "p/2.PNG", "p/deep/ä b#1%.webp", "pq/3.jpg"],
            "/p/1.jpg": ["1.jpg"],
            "/p/*": ["1.jpg", "2.PNG", "notes.txt"],
            "/p/**/*.webp": ["deep/ä b#1%.webp"],
            "/**/*.jpg": ["a.jpg", "p/1.jpg", "pq/3.jpg"],
            "/p?/*.jpg": ["pq/3.jpg"],
        }.items(),
    )
    def test_a_prefix_or_a_pattern(self, bucket: S3Bucket, name: str, expected: list[str]) -> None:
        assert sorted(ids(bucket.uri + name)) == expected
        assert {uri.removeprefix(f"{bucket.uri}/") for uri in uris(bucket.uri + name)} <= {*bucket.keys()}

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_a_slash_at_the_end_makes_no_difference(self, bucket: S3Bucket, slash: str) -> None:
        assert open_source(f"{bucket.uri}/p{slash}").description.uri == f"{bucket.uri}/p/"

    def test_a_store_lies_outside_a_source(self, bucket: S3Bucket) -> None:
        options = BackfillOptions()
        for store in (f"{bucket.uri}/p", f"{bucket.uri}/p/store"):
            with pytest.raises(UsageError, match="lies in the source"):
                listed_source(f"{bucket.uri}/p/", options, store)
        for source in ("/p/", "/p/1.jpg", "/p/*"):
            listed_source(bucket.uri + source, options, f"{bucket.uri}/pq")

    def test_what_is_not_there_is_named(self, bucket: S3Bucket) -> None:
        assert problem(f"{bucket.uri}/nowhere") == (
            f"{bucket.uri}/nowhere/: no images found; looked for keys that end in "
            ".jpg .jpeg .jpe .png .webp .gif .bmp .tif .tiff .avif .heic .heif"
        )
        for name in ("p/9.jpg", "list.csv", "9.tar"):
            assert problem(f"{bucket.uri}/{name}") == f"{bucket.uri}/{name}: does not exist"
        for name in ("x*.jpg", "x*.tar"):
            assert problem(f"{bucket.uri}/{name}") == f"{bucket.uri}/{name}: no object matches this pattern"
        for name in ("p/", "a.csv"):
            assert "NoSuchBucket" in problem(f"s3://no-such-bucket-here/{name}")
        assert "the object is empty" in problem(bucket.put("a.csv", b""))
        assert "tables only" in problem(f"{bucket.uri}/p/", url_column="x")

    def test_a_store_that_is_away_may_come_back(self, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
        monkeypatch.setattr("clipfleet.sources.s3.default_client", lambda: make_client(attempts=1))

        for name in ("p/", "l.csv", "1.tar"):
            with pytest.raises(SourceUnavailableError, match=s3.name):
                list(open_source(f"{s3.uri}/{name}").batches())


def parquet(**columns: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


LISTS = {
    "txt": b"1.jpg\nhttps://h/2.jpg\n",
    "csv": b"url,n\n1.jpg,1\nhttps://h/2.jpg,2\n",
    "tsv": b"url\tn\n1.jpg\t1\nhttps://h/2.jpg\t2\n",
    "jsonl": b'{"url": "1.jpg", "n": 1}\n{"url": "https://h/2.jpg", "n": 2}\n',
    "parquet": parquet(url=["1.jpg", "https://h/2.jpg"], n=[1, 2]),
}


class TestLists:
    @pytest.mark.parametrize("kind", [*LISTS, "txt.gz", "csv.gz", "jsonl.gz"])
    def test_relative_names_count_from_the_place_of_the_list(self, s3: S3Bucket, kind: str) -> None:
        data = LISTS[kind.removesuffix(".gz")]
        where = s3.put(f"lists/l.{kind}", gzip.compress(data) if kind.endswith(".gz") else data)

        assert ids(where) == ["0", "1"]
        assert uris(where) == [f"{s3.uri}/lists/1.jpg", "https://h/2.jpg"]
        assert uris(where, base_uri="s3://other/x")[0] == "s3://other/x/1.jpg"

    def test_a_large_table_is_read_in_pieces(self, s3: S3Bucket) -> None:
        names = [f"{number * 2654435761 % 2**32:x}/{number}.jpg" for number in range(200_000)]
        where = s3.put("large.parquet", parquet(key=names, n=range(200_000)))

        rows = items(where, base_uri="s3://images")

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


class TestShards:
    def test_keys_and_json_are_carried(self, s3: S3Bucket) -> None:
        for shard in range(3):
            s3.put(f"set/{shard:05d}.tar", img2dataset_shard(range(shard * 10, shard * 10 + 4)))
        s3.put("set/00000.parquet", b"x")
        s3.put("set/00000_stats.json", b"{}")
        keys = [shard * 10 + number for shard in range(3) for number in range(4)]

        for uri in ("set", "set/", "set/*.tar", "set/{00000..00002}.tar"):
            rows = items(f"{s3.uri}/{uri}")
            assert [row["item_id"] for row in rows] == [f"{key:09d}" for key in keys]
            assert [row["caption"] for row in rows] == [f"image {key}" for key in keys]

    def test_large_members_are_jumped_over(self, s3: S3Bucket) -> None:
        members = [(f"{number}.jpg", bytes([number]) * 9_000_000) for number in range(3)]

        assert ids(s3.put("large.tar", tar_bytes(members))) == ["0", "1", "2"]

    def test_a_shard_that_is_damaged_is_named(self, s3: S3Bucket) -> None:
        whole = img2dataset_shard(range(4))
        s3.put("a/0.tar", whole)
        s3.put("a/1.tar", whole[:-20_000])

        assert problem(f"{s3.uri}/a/{{0..2}}.tar").startswith(f"{s3.uri}/a/1.tar: ")
