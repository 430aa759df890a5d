"""One Redis URL, with Sentinel and TLS, for both redis-py and Celery.

    sentinel://[[USER]:PASSWORD@]HOST[:PORT],HOST[:PORT],.../MASTER_NAME[/DB][?OPTIONS]

`sentinels://` and `rediss://` use TLS. Options: `ssl_ca_certs` and the other `ssl_*` of redis-py;
`sentinel_username` and `sentinel_password` if the Sentinels have a login of their own.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

SENTINEL_SCHEMES = ("sentinel", "sentinels")
_SENTINEL_PORT = 26379
_FORM = "sentinel://HOST:PORT,HOST:PORT/MASTER_NAME/DB"
_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """The Sentinels, and the primary that they resolve."""

    sentinels: tuple[tuple[str, int], ...]
    master_name: str
    database: int
    login: dict[str, str] = field(repr=False)  # of the primary: username, password
    sentinel_login: dict[str, str] = field(repr=False)
    tls: dict[str, Any]  # as redis-py names it; empty: no TLS


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A broker, as Celery is configured."""

    url: str = field(repr=False)
    transport_options: dict[str, Any] = field(default_factory=dict, repr=False)
    use_ssl: dict[str, Any] | None = None


def parse_sentinel(url: str) -> SentinelUrl:
    """The parts of a Sentinel URL.

    Raises:
        ValueError: it is not of the form above.
    """
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    path = [unquote(part) for part in parts.path.split("/")[1:] if part]
    if not hosts or not 1 <= len(path) <= 2:
        raise ValueError(f"the URL must look like {_FORM}")
    options = dict(parse_qsl(parts.query))
    if len(path) > 1 and not path[1].isdecimal():
        raise ValueError(f"{path[1]!r} is not a database number; the URL must look like {_FORM}")
    sentinel_login = {
        name: options.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in options
    }
    tls = _tls_options(options)
    if tls and parts.scheme == "sentinel":
        raise ValueError("ssl_* options need sentinels://")
    if options:
        raise ValueError(f"unknown option: {', '.join(sorted(options))}")
    return SentinelUrl(
        sentinels=tuple(_host_and_port(host) for host in hosts.split(",")),
        master_name=path[0],
        database=int(path[1]) if len(path) > 1 else 0,
        login=_login(unquote(username), unquote(password)),
        sentinel_login=sentinel_login,
        tls={"ssl": True, **tls} if parts.scheme == "sentinels" else {},
    )


def broker_of(url: str) -> BrokerUrl:
    """The URL in Celery's own form, and TLS that verifies certificates.

    Raises:
        ValueError: the URL cannot be used.
    """
    parts = urlsplit(url)
    if parts.scheme in SENTINEL_SCHEMES:
        return _sentinel_broker(parse_sentinel(url))
    if parts.scheme == "rediss":
        options = dict(parse_qsl(parts.query))
        tls = _tls_options(options)
        plain = urlunsplit(parts._replace(query=urlencode(options)))
        # Without this Celery accepts any certificate.
        return BrokerUrl(plain, {}, {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, **tls})
    return BrokerUrl(url)


def _sentinel_broker(address: SentinelUrl) -> BrokerUrl:
    login = ":".join(quote(address.login.get(name, ""), safe="") for name in ("username", "password"))
    urls = [
        f"sentinel://{login}@{f'[{host}]' if ':' in host else host}:{port}/{address.database}"
        for host, port in address.sentinels
    ]
    options = {"master_name": address.master_name, "sentinel_kwargs": sentinel_options(address)}
    tls = {name: value for name, value in address.tls.items() if name != "ssl"}
    use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, **tls} if address.tls else None
    return BrokerUrl(";".join(urls), options, use_ssl)


def sentinel_options(address: SentinelUrl) -> dict[str, Any]:
    """Options of the connections to the Sentinels: short timeouts, because there are several."""
    return {"socket_timeout": 2, "socket_connect_timeout": 2, **address.sentinel_login, **address.tls}


def _tls_options(options: dict[str, str]) -> dict[str, Any]:
    """Remove the `ssl_*` options from the others."""
    tls: dict[str, Any] = {name: options.pop(name) for name in list(options) if name.startswith("ssl_")}
    if "ssl_cert_reqs" in tls:
        wanted = str(tls["ssl_cert_reqs"]).lower().removeprefix("cert_")
        if wanted not in _CERT_REQS:
            raise ValueError(f"ssl_cert_reqs must be one of {', '.join(_CERT_REQS)}")
        tls["ssl_cert_reqs"] = _CERT_REQS[wanted]
    if "ssl_check_hostname" in tls:
        tls["ssl_check_hostname"] = tls["ssl_check_hostname"].lower() not in ("0", "false", "no")
    return tls


def _host_and_port(text: str) -> tuple[str, int]:
    host = urlsplit(f"//{text}")
    if not host.hostname:
        raise ValueError(f"a Sentinel has no host name; the URL must look like {_FORM}")
    return host.hostname, host.port or _SENTINEL_PORT


def _login(username: str, password: str) -> dict[str, str]:
    return {name: value for name, value in (("username", username), ("password", password)) if value}
