"""An output on a real S3 store: lost answers, refusals, odd keys, random access."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError

from clipfleet.errors import JobConflictError, OutputUnavailableError, OutputUnreachableError, UsageError
from clipfleet.outputs import objects, open_output
from clipfleet.outputs.s3 import S3Output, s3_output
from clipfleet.s3.client import make_client
from clipfleet.s3.file import S3File
from tests.support.s3 import S3Bucket
from tests.support.s3_front import Fault, Rule, S3Front

pytestmark = pytest.mark.long


@pytest.fixture
def output(s3: S3Bucket) -> S3Output:
    return s3_output(f"{s3.uri}/jobs/one", make_client())


@pytest.fixture
def fronted(front: S3Front, output: S3Output) -> S3Output:
    """One that has looked what the store can do, through the front."""
    assert output.has_conditional_writes
    return output


def publish(output: S3Output, name: str, data: bytes) -> bool:
    with output.scratch() as path:
        path.write_bytes(data)
        return output.publish(path, name)


def replace_if(output: S3Output, name: str, version: str | None, data: bytes) -> bool:
    assert version is not None
    with output.scratch() as path:
        path.write_bytes(data)
        return output.replace_if(path, name, version)


def puts(**where: Any) -> Rule:
    return Rule(**{"method": "PUT", "path": "*/part-1", **where})


class TestPuts:
    """More faults are in test_s3_faults.py."""

    @pytest.mark.parametrize("count", [1, 2])
    @pytest.mark.parametrize("fault", [Fault.DONE_BUT_RESET, Fault.CONFLICT])
    def test_what_was_put_in_the_end_is_ours(
        self, front: S3Front, fronted: S3Output, fault: Fault, count: int
    ) -> None:
        """Also where only the answer was lost, or (Amazon's 409) another write was under way."""
        with front.broken_by(puts(fault=fault, times=count)):
            assert publish(fronted, "part-1", b"all of it")
        assert front.hits == {fault: count}
        assert fronted.read("part-1") == b"all of it"

        with front.broken_by(puts(fault=fault, times=count)):
            assert replace_if(fronted, "part-1", fronted.version("part-1"), b"new")
        assert fronted.read("part-1") == b"new"

    def test_another_writers_creation_is_not_ours(self, front: S3Front, fronted: S3Output) -> None:
        fronted.create("part-1", b"theirs")
        with front.broken_by(puts(fault=Fault.DONE_BUT_RESET, times=1)):
            assert not publish(fronted, "part-1", b"ours")

        assert fronted.read("part-1") == b"theirs"

    def test_a_lasting_conflict_is_waited_for(self, front: S3Front, fronted: S3Output) -> None:
        with (
            front.broken_by(puts(fault=Fault.CONFLICT)),
            pytest.raises(OutputUnavailableError, match="other writers"),
        ):
            publish(fronted, "part-1", b"ours")

    @pytest.mark.parametrize("size", [1, 5_000, 3 << 20])
    def test_an_object_whose_last_bytes_are_not_wanted_is_not_made(self, output: S3Output, size: int) -> None:
        """The lease may end while a request is under way: the store has had nearly all of it by then."""
        looks: list[int] = []

        def confirm() -> None:
            looks.append(1)
            if len(looks) > 2:
                raise JobConflictError("lost")

        output.create("there", b"before")
        version = output.version("there")
        for change in (
            lambda path: output.publish(path, "part-0", confirm=confirm),
            lambda path: output.replace_if(path, "there", version, confirm=confirm),
        ):
            looks.clear()
            with output.scratch() as path, pytest.raises(JobConflictError, match="lost"):
                path.write_bytes(b"x" * size)
                change(path)

        assert list(output.names("")) == ["there"]
        assert output.read("there") == b"before"


class TestStoresWithoutConditions:
    @pytest.fixture
    def plain(self, output: S3Output) -> Iterator[S3Output]:
        """The same store behind something that throws the conditions away, as old stores do."""

        def without_conditions(request: Any, **_: object) -> None:
            for header in ("If-None-Match", "If-Match"):
                del request.headers[header]

        name = "before-sign.s3.PutObject"
        output._client.meta.events.register(name, without_conditions)
        yield output
        output._client.meta.events.unregister(name, without_conditions)

    def test_a_canary_shows_it_and_one_looks_before_each_put(self, s3: S3Bucket, plain: S3Output) -> None:
        assert not plain.has_conditional_writes
        assert s3.keys() == []

        assert plain.create("part-1", b"first")
        assert not plain.create("part-1", b"second")
        assert plain.read("part-1") == b"first"
        seen = plain.version("part-1")
        assert replace_if(plain, "part-1", seen, b"two")
        assert not replace_if(plain, "part-1", seen, b"three")
        assert plain.read("part-1") == b"two"

    def test_a_canary_that_is_swept_away_meanwhile_says_nothing(self, s3: S3Bucket, output: S3Output) -> None:
        def sweep(**_: Any) -> None:
            if s3.keys("jobs/one/_clipfleet/tmp/"):
                output._client.meta.events.unregister("before-call.s3.PutObject", sweep)
                output.sweep([])

        output._client.meta.events.register("before-call.s3.PutObject", sweep)

        assert output.has_conditional_writes
        assert s3.keys() == []

    def test_a_store_that_refuses_conditions_gets_plain_puts(self, output: S3Output) -> None:
        def refuse(params: Any, **_: object) -> None:
            if "If-None-Match" in params["headers"]:
                status = {"HTTPStatusCode": 501}
                raise ClientError(
                    {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": status}, "PutObject"
                )

        output._client.meta.events.register("before-call.s3.PutObject", refuse)

        assert not output.has_conditional_writes
        assert output.create("part-1", b"one")
        assert not output.create("part-1", b"two")


class TestNames:
    def test_more_names_than_one_page_are_found(self, s3: S3Bucket, output: S3Output) -> None:
        names = [f"part-{number:04d}" for number in range(1_050)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: s3.put(f"jobs/one/{name}", b""), names))

        assert list(output.names("part-")) == names

    def test_clear_removes_nothing_beside_or_below(self, s3: S3Bucket, output: S3Output) -> None:
        foreign = ["jobs/on", "jobs/one-more/part-0", "jobs/one/part-x/deep", "jobs/two/part-0"]
        for key in (*foreign, f"jobs/one/{objects.LAYOUT.part(0)}"):
            s3.put(key, b"x")

        output.clear()

        assert s3.keys() == foreign

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
        output, name = open_output(f"{s3.uri}{path}"), objects.LAYOUT.part(0)

        assert output.uri == f"{s3.uri}/{prefix}".rstrip("/")
        assert output.create(name, b"rows")
        assert not output.create(name, b"other")
        assert output.read(name) == b"rows"
        assert list(output.names(objects.LAYOUT.part_prefix)) == [name]
        assert s3.keys() == [f"{prefix}{name}"]
        output.clear()
        assert s3.keys() == []

    @pytest.mark.parametrize(
        "path", ["/a//b", "//a", "/a/../b", "/./a", "/a\nb", "/" + "x" * 300, "/y" * 600]
    )
    def test_a_prefix_that_stores_treat_differently_is_refused(self, s3: S3Bucket, path: str) -> None:
        with pytest.raises(UsageError, match="output"):
            open_output(f"{s3.uri}{path}")


def test_wrong_keys_are_reported_and_waited_for(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guess")
    output = open_output(f"{s3.uri}/x")

    for call in (lambda: output.create("a", b""), lambda: output.read("a"), output.clear):
        with pytest.raises(
            OutputUnavailableError, match=r"403 \(SignatureDoesNotMatch.*AWS_ACCESS_KEY_ID"
        ) as told:
            call()
        assert not isinstance(told.value, OutputUnreachableError)


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

    def test_a_part_of_ordinary_size_takes_two_requests(self, front: S3Front, output: S3Output) -> None:
        table = pa.table({"number": list(range(100_000))})
        with output.scratch() as path:
            pq.write_table(table, path)
            output.publish(path, "part-1")

        before = len(front.seen)
        assert pq.read_table(output.open("part-1")).equals(table)

        assert len(front.seen) == before + 2

    def test_bytes_of_two_versions_are_never_mixed(self, output: S3Output) -> None:
        output.replace("part-1", bytes(1 << 20))
        with output.open("part-1") as file:
            output.replace("part-1", b"\1" * (1 << 20))
            with pytest.raises(OutputUnavailableError, match="replaced or removed while it was read"):
                file.read()

    @pytest.mark.parametrize("fault", [Fault.TRUNCATED, Fault.RESET_IN_ANSWER])
    def test_a_broken_answer_is_asked_for_again(self, front: S3Front, output: S3Output, fault: Fault) -> None:
        data = bytes(range(256)) * 1000
        output.create("part-1", data)
        with output.open("part-1") as file, front.broken_by(Rule(fault=fault, method="GET", times=2)):
            assert file.read() == data
        assert front.hits == {fault: 2}
