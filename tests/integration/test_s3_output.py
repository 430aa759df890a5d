"""An output on a real S3 store: names taken once, lost answers, refusals, odd keys, random access."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import URLLib3Session

from clipfleet.errors import JobConflictError, OutputUnavailableError, OutputUnreachableError, UsageError
from clipfleet.ledger import keys
from clipfleet.outputs import open_output
from clipfleet.outputs.s3 import S3Output, s3_output
from clipfleet.s3.client import make_client
from clipfleet.s3.file import S3File
from tests.support.s3 import S3Bucket

pytestmark = pytest.mark.long

WRITERS = 12


@pytest.fixture
def output(s3: S3Bucket) -> S3Output:
    return s3_output(f"{s3.uri}/jobs/one", make_client())


def publish(output: S3Output, name: str, data: bytes, *, replace: bool = False) -> bool:
    with output.scratch() as path:
        path.write_bytes(data)
        return output.publish(path, name, replace=replace)


def replace_if(output: S3Output, name: str, version: str | None, data: bytes) -> bool:
    assert version is not None
    with output.scratch() as path:
        path.write_bytes(data)
        return output.replace_if(path, name, version)


@contextmanager
def requests_to(client: Any, operation: str, answer: Callable[[Any], Any]) -> Iterator[list[str]]:
    """Let `answer` treat each request of one operation; yields their methods and URLs as they come."""
    seen: list[str] = []

    def handle(request: Any, **_: object) -> Any:
        seen.append(f"{request.method} {request.url}")
        return answer(request)

    client.meta.events.register(f"before-send.s3.{operation}", handle)
    try:
        yield seen
    finally:
        client.meta.events.unregister(f"before-send.s3.{operation}", handle)


def losing_answers(count: int) -> Callable[[Any], None]:
    """Carry out the first requests, and break the connection instead of answering."""
    left = [count]

    def treat(request: Any) -> None:
        if left[0] == 0:
            return
        left[0] -= 1
        URLLib3Session().send(request)
        raise ConnectionClosedError(endpoint_url=request.url)

    return treat


@contextmanager
def waited_for(message: str) -> Iterator[None]:
    """What is raised inside says that the same call may succeed later."""
    with pytest.raises(OutputUnavailableError, match=message) as told:
        yield
    assert not isinstance(told.value, OutputUnreachableError)


class TestTakingAName:
    def test_a_canary_that_is_swept_away_meanwhile_says_nothing(self, s3: S3Bucket, output: S3Output) -> None:
        def sweep(**_: Any) -> None:
            if s3.keys("jobs/one/_clipfleet/tmp/"):
                output._client.meta.events.unregister("before-call.s3.PutObject", sweep)
                output.sweep([])

        output._client.meta.events.register("before-call.s3.PutObject", sweep)

        assert output.has_conditional_writes
        assert s3.keys() == []

    def test_no_scratch_file_and_no_canary_stays(
        self, s3: S3Bucket, output: S3Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not even while it is written to: who is killed then leaves nothing on his machine."""
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with output.scratch() as path:
            path.write_bytes(b"data")
            assert list(tmp_path.iterdir()) == []
            output.publish(path, "part-1")

        assert s3.get("jobs/one/part-1") == b"data"
        assert s3.keys() == ["jobs/one/part-1"]


class TestLostAnswers:
    @pytest.mark.parametrize("lost", [1, 2])
    def test_a_creation_whose_answer_was_lost_is_ours(self, output: S3Output, lost: int) -> None:
        assert output.has_conditional_writes
        with requests_to(output._client, "PutObject", losing_answers(lost)) as seen:
            assert publish(output, "part-1", b"ours")

        assert len(seen) == lost + 1
        assert output.read("part-1") == b"ours"

    def test_a_replacement_whose_answer_was_lost_is_ours(self, output: S3Output) -> None:
        output.create("part-1", b"old")
        version = output.version("part-1")
        with requests_to(output._client, "PutObject", losing_answers(1)):
            assert replace_if(output, "part-1", version, b"new")

        assert output.read("part-1") == b"new"

    def test_another_writers_creation_is_not_ours(self, output: S3Output) -> None:
        output.create("part-1", b"theirs")
        with requests_to(output._client, "PutObject", losing_answers(1)):
            assert not publish(output, "part-1", b"ours")

        assert output.read("part-1") == b"theirs"

    def test_a_store_that_never_answers_is_waited_for(self, output: S3Output) -> None:
        assert output.has_conditional_writes
        with requests_to(output._client, "PutObject", losing_answers(99)), waited_for("part-1"):
            publish(output, "part-1", b"ours")


class TestWritersInTheWay:
    """Amazon answers 409 while another conditional write of the same name is under way."""

    def conflicting(self, count: float) -> Callable[[Any], Any]:
        left = [count]

        def treat(request: Any) -> Any:
            if left[0] == 0:
                return None
            left[0] -= 1
            request.body.read()  # as the store has done by then
            return _answer(409, "ConditionalRequestConflict", request.url)

        return treat

    def test_a_conflict_is_asked_again_from_the_first_byte(self, output: S3Output) -> None:
        assert output.has_conditional_writes
        with requests_to(output._client, "PutObject", self.conflicting(2)) as seen:
            assert publish(output, "part-1", b"all of it")

        assert len(seen) == 3
        assert output.read("part-1") == b"all of it"

    def test_a_lasting_conflict_is_waited_for(
        self, output: S3Output, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("clipfleet.outputs.s3.time.sleep", lambda seconds: None)
        assert output.has_conditional_writes
        with (
            requests_to(output._client, "PutObject", self.conflicting(99)),
            pytest.raises(OutputUnavailableError, match="other writers"),
        ):
            publish(output, "part-1", b"ours")


class TestStoresWithoutConditions:
    @pytest.fixture
    def plain(self, output: S3Output) -> Iterator[S3Output]:
        """The same store behind something that throws the conditions away, as old stores do."""

        def without_conditions(request: Any, **_: object) -> None:
            for header in ("If-None-Match", "If-Match"):
                if header in request.headers:
                    del request.headers[header]

        name = "before-sign.s3.PutObject"
        output._client.meta.events.register(name, without_conditions)
        yield output
        output._client.meta.events.unregister(name, without_conditions)

    def test_the_canary_shows_it(self, s3: S3Bucket, plain: S3Output) -> None:
        assert not plain.has_conditional_writes
        assert s3.keys() == []

    def test_a_name_that_is_taken_stays_taken(self, plain: S3Output) -> None:
        assert plain.create("part-1", b"first")
        assert not plain.create("part-1", b"second")
        assert plain.read("part-1") == b"first"

    def test_an_old_version_is_not_replaced(self, plain: S3Output) -> None:
        plain.create("part-1", b"one")
        seen = plain.version("part-1")

        assert replace_if(plain, "part-1", seen, b"two")
        assert not replace_if(plain, "part-1", seen, b"three")
        assert plain.read("part-1") == b"two"

    def test_a_store_that_refuses_conditions_gets_plain_puts(self, s3: S3Bucket, output: S3Output) -> None:
        def refuse(request: Any) -> Any:
            if "If-None-Match" not in request.headers:
                return None
            return _answer(501, "NotImplemented", request.url)

        with requests_to(output._client, "PutObject", refuse):
            assert not output.has_conditional_writes
            assert output.create("part-1", b"one")
            assert not output.create("part-1", b"two")


class TestNames:
    def test_more_names_than_one_page_are_found(self, s3: S3Bucket, output: S3Output) -> None:
        names = [f"part-{number:04d}" for number in range(1_050)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: s3.put(f"jobs/one/{name}", b""), names))

        assert list(output.names("part-")) == names

    @pytest.mark.parametrize("size", [1, 5_000, 3 << 20])
    def test_an_object_whose_last_bytes_are_not_wanted_is_not_made(
        self, s3: S3Bucket, output: S3Output, size: int
    ) -> None:
        """The lease may end while a request is under way: the store has had nearly all of it by then."""
        looks: list[int] = []

        def confirm() -> None:
            looks.append(1)
            if len(looks) > 2:
                raise JobConflictError("lost")

        s3.put("jobs/one/there", b"before")
        version = output.version("there")
        assert version is not None
        for change in (
            lambda path: output.publish(path, "part-0", confirm=confirm),
            lambda path: output.replace_if(path, "there", version, confirm=confirm),
        ):
            looks.clear()
            with output.scratch() as path, pytest.raises(JobConflictError, match="lost"):
                path.write_bytes(b"x" * size)
                change(path)

        assert s3.keys("jobs/one/") == ["jobs/one/there"]
        assert output.read("there") == b"before"

    def test_clear_removes_what_a_job_left_and_nothing_else(self, s3: S3Bucket, output: S3Output) -> None:
        job = [keys.JOB_FILE, keys.MANIFEST, keys.ERRORS, keys.SUCCESS, "part-00000000.parquet"]
        footer = keys.detached_footer(keys.part(0, "jsonl"), "job", "ab")
        others = [
            keys.staged_file(0, 1),
            f"{keys.TMP}/canary-1",
            footer,
            keys.CLEARING,
            "notes.txt",
            "part-x/deep",
        ]
        for name in [*job, *others]:
            s3.put(f"jobs/one/{name}", b"x")
        for name in ("one-more/part-0", "on", "two/part-0"):
            s3.put(f"jobs/{name}", b"x")

        output.clear()
        output.clear()

        kept = [keys.JOB_FILE, keys.CLEARING, footer, "notes.txt", "part-x/deep"]
        elsewhere = ["jobs/on", "jobs/one-more/part-0", "jobs/two/part-0"]
        assert s3.keys() == sorted([*elsewhere, *(f"jobs/one/{name}" for name in kept)])


class TestUris:
    @pytest.mark.parametrize(
        ("path", "prefix"),
        [
            ("", ""),
            ("/", ""),
            ("/a/b/", "a/b/"),
            ("/kätzchen und hunde/日本", "kätzchen und hunde/日本/"),
            ("/50%25+a=b&c#d?e", "50%25+a=b&c#d?e/"),
            ("/run=1/day=2024-01-01", "run=1/day=2024-01-01/"),
            ('/it\'s "quoted" (x)', 'it\'s "quoted" (x)/'),
            ("/a.b-c_d~e!f*g", "a.b-c_d~e!f*g/"),
        ],
    )
    def test_any_printable_prefix_is_taken_as_it_stands(self, s3: S3Bucket, path: str, prefix: str) -> None:
        output = open_output(f"{s3.uri}{path}")

        assert output.uri == f"{s3.uri}/{prefix}".rstrip("/")
        assert output.create("part-00000000.parquet", b"rows")
        assert not output.create("part-00000000.parquet", b"other")
        assert output.read("part-00000000.parquet") == b"rows"
        assert list(output.names("part-")) == ["part-00000000.parquet"]
        assert s3.keys() == [f"{prefix}part-00000000.parquet"]
        output.clear()
        assert s3.keys() == []

    @pytest.mark.parametrize(
        "path", ["/a//b", "//a", "/a/../b", "/./a", "/a\nb", "/" + "x" * 300, "/y" * 600]
    )
    def test_a_prefix_that_stores_treat_differently_is_refused(self, s3: S3Bucket, path: str) -> None:
        with pytest.raises(UsageError, match="output"):
            open_output(f"{s3.uri}{path}")


class TestRefusals:
    def test_a_bucket_that_is_not_there_is_not_waited_for(self, s3: S3Bucket) -> None:
        output = s3_output("s3://no-such-bucket-here/x", make_client())

        for call in (
            lambda: output.create("a", b""),
            lambda: output.read("a"),
            lambda: output.open("a"),
            lambda: list(output.names("")),
        ):
            with pytest.raises(OutputUnreachableError, match=r"NoSuchBucket.*create the bucket"):
                call()

    def test_wrong_keys_are_reported(self, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guess")
        output = open_output(f"{s3.uri}/x")

        for call in (lambda: output.create("a", b""), lambda: output.read("a"), output.clear):
            with waited_for(r"403 \(SignatureDoesNotMatch.*AWS_ACCESS_KEY_ID"):
                call()

    def test_missing_keys_are_reported(
        self, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

        with waited_for("set AWS_ACCESS_KEY_ID"):
            open_output(f"{s3.uri}/x").read("a")

    def test_an_endpoint_without_a_server_is_waited_for(
        self, s3: S3Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        output = s3_output(f"{s3.uri}/x", make_client(attempts=1))

        with waited_for(r"127\.0\.0\.1:9"):
            output.create("a", b"")


class TestReading:
    @pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 1 << 20, (5 << 20) + 7])
    def test_any_range_is_what_was_written(self, s3: S3Bucket, size: int) -> None:
        data = bytes(number * number % 251 for number in range(size))
        s3.put("x", data)
        plain = io.BytesIO(data)

        with S3File(make_client(), s3.name, "x") as file:
            assert file.size() == size
            for start in (0, 1, size // 3, size - 70_000, size - 1, size, size + 5):
                for length in (0, 1, 1000, 1 << 20, 3 << 20, -1):
                    start = max(0, start)
                    plain.seek(start), file.seek(start)
                    assert file.read(length) == plain.read(length), (start, length)

    def test_a_part_of_ordinary_size_takes_two_requests(self, output: S3Output) -> None:
        table = pa.table({"number": list(range(100_000))})
        with output.scratch() as path:
            pq.write_table(table, path)
            output.publish(path, "part-1")

        with requests_to(output._client, "GetObject", lambda _: None) as seen:
            assert pq.read_table(output.open("part-1")).equals(table)

        assert len(seen) == 2

    def test_bytes_of_two_versions_are_never_mixed(self, output: S3Output) -> None:
        output.replace("part-1", bytes(1 << 20))
        with output.open("part-1") as file:
            output.replace("part-1", b"\1" * (1 << 20))
            with pytest.raises(OutputUnavailableError, match="replaced or removed while it was read"):
                file.read()

    def test_an_answer_that_breaks_off_is_asked_for_again(self, s3: S3Bucket, output: S3Output) -> None:
        data = bytes(range(256)) * 1000
        output.create("part-1", data)
        broken = [2]

        def breaking(parsed: Any, **_: object) -> None:
            if broken[0]:
                broken[0] -= 1
                parsed["Body"].close()

        with output.open("part-1") as file:
            output._client.meta.events.register("after-call.s3.GetObject", breaking)
            assert file.read() == data
        assert broken == [0]


def _answer(status: int, code: str, url: str) -> Any:
    from botocore.awsrequest import AWSResponse

    class Raw(io.BytesIO):
        def stream(self, **_: object) -> Iterator[bytes]:
            yield self.read()

    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    return AWSResponse(url, status, {"Content-Type": "application/xml"}, Raw(body))
