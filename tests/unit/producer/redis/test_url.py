"""One URL for redis-py and Celery: Sentinel, TLS, logins, and what is wrong with it."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from clipfleet.errors import RedisUnavailableError, UsageError
from clipfleet.hints import make_app
from clipfleet.redis.connection import connect, masked, redis_errors
from clipfleet.redis.url import broker_of, parse_sentinel

SECRET = "s3cr:t@/"
QUOTED = "s3cr%3At%40%2F"
URL = f"sentinel://worker:{QUOTED}@one:26380,two/mymaster/3?sentinel_password=other"


class TestSentinel:
    def test_all_parts(self) -> None:
        address = parse_sentinel(URL)

        assert address.sentinels == (("one", 26380), ("two", 26379))
        assert (address.master_name, address.database) == ("mymaster", 3)
        assert address.login == {"username": "worker", "password": SECRET}
        assert address.sentinel_login == {"password": "other"}
        assert address.tls == {}

    def test_what_may_be_left_out(self) -> None:
        address = parse_sentinel("sentinel://one/mymaster")

        assert address.sentinels == (("one", 26379),)
        assert (address.database, address.login, address.sentinel_login) == (0, {}, {})

    def test_tls_for_all_connections(self) -> None:
        url = "sentinels://:pw@[::1]:1,two/m?ssl_ca_certs=/ca.pem&ssl_check_hostname=false"
        address = parse_sentinel(url)

        assert address.sentinels[0] == ("::1", 1)
        assert address.tls == {"ssl": True, "ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}

    def test_no_secret_shows(self) -> None:
        shown = f"{parse_sentinel(URL)!r} {broker_of(URL)!r} {masked(URL)} {connect(URL)!r}"

        assert "other" not in shown
        assert "s3cr" not in shown
        assert "mymaster" in shown

    @pytest.mark.parametrize("use", [connect, make_app])
    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("sentinel://one", "must look like"),
            ("sentinel:///mymaster", "must look like"),
            ("sentinel://one/mymaster/0/more", "must look like"),
            ("sentinel://one/mymaster/zero", "not a database number"),
            ("sentinel://one:x/mymaster", "Port"),
            ("sentinel://one,/mymaster", "no host name"),
            ("sentinel://one/mymaster?ssl_ca_certs=x", "sentinels://"),
            ("sentinel://one/mymaster?master=x", "unknown option: master"),
            ("sentinels://one/mymaster?ssl_cert_reqs=maybe", "ssl_cert_reqs"),
        ],
    )
    def test_what_is_wrong_is_told_in_one_line(self, use: Callable[[str], Any], url: str, words: str) -> None:
        with pytest.raises(UsageError, match=rf"^.*CLIPFLEET_REDIS_URL.*{words}.*$") as caught:
            use(url)
        assert "\n" not in str(caught.value)


class TestBroker:
    def test_celery_has_a_form_of_its_own(self) -> None:
        app = make_app(URL)

        assert app.conf.broker_url == (
            f"sentinel://worker:{QUOTED}@one:26380/3;sentinel://worker:{QUOTED}@two:26379/3"
        )
        options = app.conf.broker_transport_options
        assert options["master_name"] == "mymaster"
        assert options["sentinel_kwargs"]["password"] == "other"
        assert options["health_check_interval"] == 3
        assert not app.conf.broker_use_ssl

    def test_sentinels_with_tls(self) -> None:
        broker = broker_of("sentinels://:pw@one/mymaster?ssl_ca_certs=/ca.pem")

        assert broker.use_ssl == {
            "ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, "ssl_ca_certs": "/ca.pem",
        }  # fmt: skip
        assert broker.transport_options["sentinel_kwargs"]["ssl"] is True

    @pytest.mark.parametrize("query", ["", "?ssl_ca_certs=/ca.pem", "?ssl_cert_reqs=required"])
    def test_tls_is_checked_unless_somebody_says_otherwise(self, query: str) -> None:
        app = make_app(f"rediss://:pw@host/0{query}")

        assert app.conf.broker_use_ssl["ssl_cert_reqs"] is ssl.CERT_REQUIRED
        assert "ssl_" not in app.conf.broker_url

    def test_who_wants_no_check_must_say_so(self) -> None:
        broker = broker_of("rediss://host/0?ssl_cert_reqs=none&ssl_check_hostname=no")

        assert broker.use_ssl == {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}

    @pytest.mark.parametrize(
        "url", ["redis://:pw@host:1/2", "amqp://u:p@host//", "redis+socket:///s?virtual_host=1"]
    )
    def test_others_stay_as_they_are(self, url: str) -> None:
        assert (broker_of(url).url, broker_of(url).use_ssl) == (url, None)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("redis://host/0?foo=bar", "foo"),
        ("redis://host/0?retry=3", "str"),
        ("redis://host/0?ssl_ca_certs=/ca.pem", "ssl_ca_certs"),
        ("rediss://host/0?ssl_ca_cert=/ca.pem", "ssl_ca_cert"),
        ("rediss://host/0?ssl_cert_reqs=perhaps", "perhaps"),
        ("redis://:pw@host/0?credential_provider=x", "credential_provider"),
    ],
)
def test_an_option_that_nobody_knows_is_told_at_once(url: str, what: str) -> None:
    with pytest.raises(UsageError, match=rf"^CLIPFLEET_REDIS_URL cannot be used: .*{what}.*$"):
        connect(url)


def test_a_connection_that_cannot_even_be_made_is_told_as_an_outage() -> None:
    words = r"cannot connect: .*Too many open files"
    with pytest.raises(RedisUnavailableError, match=words), redis_errors("redis://h/0"):
        raise OSError(errno.EMFILE, "Too many open files", "METADATA")  # redis-py looks up its own version


def test_sentinels_that_know_no_primary_are_told_in_one_short_line() -> None:
    url = "sentinel://:s3cret@127.0.0.1:1/ours"

    with pytest.raises(RedisUnavailableError) as caught, redis_errors(url), connect(url, retries=0) as client:
        client.ping()

    told = str(caught.value)
    assert "no Sentinel there knows a running primary" in told
    assert "sentinel://***@127.0.0.1:1/ours" in told
    assert "redis.connection" not in told and "s3cret" not in told
