"""S3: what a URI names, what a refusal means, where a client's configuration comes from. Nothing is sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from clipfleet.errors import OutputUnavailableError, OutputUnreachableError, SourceError, UsageError
from clipfleet.s3.client import default_client, make_client, split_s3_uri
from clipfleet.s3.failures import S3Problem, explain, s3_errors

STORE = "http://store.internal:9000"
SetEnv = Callable[..., None]
STAGE_SECONDS, LEASE_SECONDS = 60, 30  # of a chunk that was just claimed


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The developer's own variables and profiles are none of these tests' business."""
    for name in ("ENDPOINT_URL", "ENDPOINT_URL_S3", "PROFILE", "REGION", "DEFAULT_REGION"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def answer(status: int, code: str = "", message: str = "") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},
        "GetObject",
    )


class TestUri:
    @pytest.mark.parametrize(
        ("uri", "bucket", "key"),
        [
            ("s3://images", "images", ""),
            ("s3://images/", "images", ""),
            ("s3://images/2024/a b.jpg", "images", "2024/a b.jpg"),
            ("s3://images/50%25?x=1#y", "images", "50%25?x=1#y"),
            ("s3://images//kätzchen", "images", "/kätzchen"),
        ],
    )
    def test_the_key_is_taken_as_it_stands(self, uri: str, bucket: str, key: str) -> None:
        assert split_s3_uri(uri) == (bucket, key)

    @pytest.mark.parametrize(
        "uri", ["s3://", "s3:///key", "s3://buc ket/x", "http://bucket/x", "bucket/x", ""]
    )
    def test_anything_else_is_refused_with_the_right_form(self, uri: str) -> None:
        with pytest.raises(UsageError, match="s3://BUCKET/PATH"):
            split_s3_uri(uri)


class TestRefusals:
    @pytest.mark.parametrize(
        ("error", "problem"),
        [
            (answer(404, "NoSuchKey", "The specified key does not exist."), S3Problem.NO_OBJECT),
            (answer(404, "404", "Not Found"), S3Problem.NO_OBJECT),
            (answer(404, "NoSuchBucket"), S3Problem.NO_BUCKET),
            (answer(403, "AccessDenied"), S3Problem.DENIED),
            (answer(403, "403", "Forbidden"), S3Problem.DENIED),
            (answer(403, "InvalidAccessKeyId"), S3Problem.NO_CREDENTIALS),
            (answer(400, "ExpiredToken"), S3Problem.EXPIRED),
            (answer(301, "PermanentRedirect"), S3Problem.MISCONFIGURED),
            (answer(400, "InvalidArgument"), S3Problem.REFUSED),
            (answer(503, "SlowDown"), S3Problem.THROTTLED),
            (answer(429, ""), S3Problem.THROTTLED),
            (answer(500, "InternalError"), S3Problem.AWAY),
            (answer(400, "RequestTimeout"), S3Problem.AWAY),
            (answer(403, "RequestTimeTooSkewed"), S3Problem.CLOCK),
            (NoCredentialsError(), S3Problem.NO_CREDENTIALS),
            (EndpointConnectionError(endpoint_url="http://s3.example"), S3Problem.AWAY),
            (ReadTimeoutError(endpoint_url="http://s3.example"), S3Problem.AWAY),
            (ResponseStreamingError(error="broken"), S3Problem.AWAY),
            (RecursionError("botocore follows redirects"), S3Problem.MISCONFIGURED),
            (HTTPClientError(error=RecursionError("likewise")), S3Problem.MISCONFIGURED),
        ],
    )
    def test_each_answer_has_its_kind(self, error: Exception, problem: S3Problem) -> None:
        assert explain(error).problem is problem

    def test_only_what_heals_by_itself_is_waited_for(self) -> None:
        waited_for = {explain(answer(status)).problem for status in (408, 409, 429, 500, 502, 503, 504)}

        assert waited_for == {S3Problem.THROTTLED, S3Problem.AWAY}
        assert all(explain(answer(status)).waiting_helps for status in (429, 500))
        assert explain(answer(400, "ExpiredToken")).waiting_helps
        assert not any(explain(answer(status)).waiting_helps for status in (301, 400, 401, 403, 404))
        with pytest.raises(OutputUnavailableError) as told, s3_errors("s3://images"):
            raise EndpointConnectionError(endpoint_url="http://s3.example")
        assert not isinstance(told.value, OutputUnreachableError)

    def test_the_message_is_one_line_with_the_way_out(self) -> None:
        with pytest.raises(OutputUnreachableError) as told, s3_errors("s3://images/a.jpg"):
            raise answer(403, "AccessDenied", "Access\n Denied.")

        assert str(told.value) == (
            "s3://images/a.jpg: the store answered 403 (AccessDenied: Access Denied); the credentials "
            "need GetObject, PutObject, DeleteObject, ListBucket"
        )

    def test_the_caller_chooses_what_is_raised(self) -> None:
        with pytest.raises(SourceError, match="NoSuchBucket"), s3_errors("s3://x", lasting=SourceError):
            raise answer(404, "NoSuchBucket")


class TestClient:
    @pytest.fixture
    def set_env(self, monkeypatch: pytest.MonkeyPatch) -> SetEnv:
        """Sets variables whose names begin with AWS_."""

        def set_env(**values: str) -> None:
            for name, value in values.items():
                monkeypatch.setenv(f"AWS_{name}", value)

        return set_env

    def test_the_endpoint_of_the_environment_has_the_bucket_in_the_path(self, set_env: SetEnv) -> None:
        set_env(ENDPOINT_URL=STORE, ACCESS_KEY_ID="name", SECRET_ACCESS_KEY="secret")

        url = make_client().generate_presigned_url("get_object", Params={"Bucket": "bkt", "Key": "a b"})

        assert url.startswith(f"{STORE}/bkt/a%20b?")

    def test_a_store_that_never_answers_is_found_out_before_a_lease_is_lost(self) -> None:
        settings = make_client().meta.config

        attempt_seconds = settings.connect_timeout + settings.read_timeout
        assert settings.retries["total_max_attempts"] * attempt_seconds < STAGE_SECONDS + LEASE_SECONDS

    def test_the_endpoint_of_s3_goes_before_the_common_one(self, set_env: SetEnv) -> None:
        set_env(ENDPOINT_URL="http://other.internal", ENDPOINT_URL_S3=STORE)

        assert make_client().meta.endpoint_url == STORE

    def test_a_profile_brings_its_own_endpoint_and_region(self, set_env: SetEnv, tmp_path: Path) -> None:
        (tmp_path / "config").write_text(f"[profile lab]\nregion = eu-west-3\nendpoint_url = {STORE}\n")
        set_env(PROFILE="lab")

        meta = make_client().meta

        assert (meta.endpoint_url, meta.region_name) == (STORE, "eu-west-3")

    def test_the_region_is_also_read_from_its_newer_variable(self, set_env: SetEnv) -> None:
        set_env(REGION="eu-north-1")

        assert make_client().meta.region_name == "eu-north-1"

    @pytest.mark.parametrize(
        ("endpoint", "proxy"), [("http://127.0.0.1:9000", None), (STORE, "http://proxy")]
    )
    def test_a_proxy_does_not_lead_to_this_machine(
        self, monkeypatch: pytest.MonkeyPatch, set_env: SetEnv, endpoint: str, proxy: str | None
    ) -> None:
        for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", "http://proxy")
        set_env(ENDPOINT_URL=endpoint)

        session = make_client()._endpoint.http_session

        assert session._proxy_config.proxy_url_for(f"{endpoint}/bucket") == proxy

    @pytest.mark.parametrize(
        "wrong", [{"ENDPOINT_URL": "store:90"}, {"PROFILE": "nobody"}, {"REGION": "a b"}]
    )
    def test_a_configuration_that_cannot_be_used_is_told(
        self, set_env: SetEnv, wrong: dict[str, str]
    ) -> None:
        set_env(**wrong)

        with pytest.raises(UsageError, match=f"cannot use S3: .*AWS_{next(iter(wrong))}"):
            make_client()

    def test_the_shared_client_follows_the_environment(self, set_env: SetEnv) -> None:
        set_env(ENDPOINT_URL="http://one.internal")
        first = default_client()
        assert default_client() is first

        set_env(ENDPOINT_URL=STORE)
        assert default_client().meta.endpoint_url == STORE
