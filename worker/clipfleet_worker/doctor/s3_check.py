"""Checks that a bucket can be listed and written, and that the store supports conditional writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from clipfleet.errors import ClipfleetError, OutputUnavailableError, OutputUnreachableError, UsageError
from clipfleet.outputs.s3 import s3_output
from clipfleet.s3.client import S3Client, make_client, split_s3_uri
from clipfleet.s3.failures import explain, failures_of_calls
from clipfleet_worker.doctor import Finding, fine, problem, warning

_CLOCK_SECONDS = 60.0  # S3 rejects signatures that are a quarter of an hour off
_SIGNATURES = "S3 rejects signatures when it is a quarter of an hour"


def s3_findings(uri: str, *, is_output: bool, buckets: Sequence[str] = ()) -> Iterator[Finding]:
    """Check `s3://BUCKET` or `s3://BUCKET/PREFIX`.

    Args:
        uri: of the bucket, or of future results.
        is_output: whether it must be writable.
        buckets: the only ones that workers use; empty: all.
    """
    try:
        bucket, _ = split_s3_uri(uri)
        client = make_client(attempts=1, read_timeout_seconds=10)
    except UsageError as error:
        yield problem(f"cannot check {uri}", str(error))
        return
    if buckets and bucket not in buckets:
        yield problem(f"{bucket} is not in CLIPFLEET_S3_BUCKETS: workers reject it", "add it there")
    try:
        answer = client.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except failures_of_calls() as error:
        what, _, way_out = explain(error).detail.partition("; ")
        yield problem(f"{uri}: {what}", way_out or "see AWS_ENDPOINT_URL, and the log of the store")
        return
    if "IsTruncated" not in answer:  # every store answers it, and no other web server
        yield problem(
            f"{uri}: the server at {client.meta.endpoint_url} is not an S3 store",
            "set AWS_ENDPOINT_URL to the store itself, not to its console or a proxy",
        )
        return
    yield fine(f"{uri} can be listed ({client.meta.endpoint_url})")
    yield from _of_clock(answer["ResponseMetadata"]["HTTPHeaders"].get("date", ""))
    yield from _of_writing(uri, is_output, client)


def _of_writing(uri: str, is_output: bool, client: S3Client) -> Iterator[Finding]:
    try:
        is_conditional = s3_output(uri, client).has_conditional_writes
    except (OutputUnavailableError, OutputUnreachableError) as error:
        yield _unwritable(is_output, error)
        return
    if is_conditional:
        yield fine(f"{uri} can be written, and the store supports conditional writes")
    else:
        yield warning(
            f"{uri} can be written, but the store ignores `If-None-Match`",
            "update it, or accept that a retry waits a lease longer; results are complete all the same",
        )


def _unwritable(is_output: bool, error: ClipfleetError) -> Finding:
    what, _, way_out = str(error).partition("; ")
    if is_output:
        is_away = isinstance(error, OutputUnavailableError)
        way_out = way_out or ("see the log of the store" if is_away else "check rights and quota there")
        return problem(f"cannot be written: {what}", way_out)
    return warning(f"cannot be written: {what}", "use it for sources only, and another bucket for outputs")


def _of_clock(date: str) -> Iterator[Finding]:
    try:
        ahead = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    except (TypeError, ValueError):  # no date
        return
    if abs(ahead) > _CLOCK_SECONDS:
        side = "ahead of" if ahead > 0 else "behind"
        yield warning(
            f"this machine's clock is {abs(ahead):.0f} s {side} the store's: {_SIGNATURES}", "run NTP"
        )
