"""Settings from the environment (prefix `CLIPFLEET_`): frozen, validated at start."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from clipfleet.errors import UsageError, problem_text
from clipfleet.redis.url import SENTINEL_SCHEMES, parse_sentinel

S = TypeVar("S", bound=BaseSettings)
T = TypeVar("T")
_PREFIX = "CLIPFLEET_"

WRITE_LIMIT_SECONDS = 30.0  # one attempt to put an object into S3 times out after 25 s of silence
DAY_SECONDS = 86_400  # upper bound of a worker's durations: anything longer is a typo, or `inf`
_NEAR = 0.72  # cutoff of difflib's ratio for a typo
# Kubernetes sets these for every service whose name has our prefix.
_OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT(_\d+_(TCP|UDP)(_\w+)?)?$")
_OF_THE_GATEWAY = "GATEWAY_"  # how all of its settings begin
_BROKER_SCHEMES = ("redis", "rediss", "redis+socket", "sentinel", "sentinels", "amqp", "amqps")


def split_commas(value: object) -> object:
    """Turn `"a, b"` into `("a", "b")`; leave other values to pydantic."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


CommaSeparated = Annotated[tuple[T, ...], NoDecode, BeforeValidator(split_commas)]


class Settings(BaseSettings):
    """Settings of every program that submits or reads jobs."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, env_ignore_empty=True)

    redis_url: SecretStr | None = Field(
        None, description="Redis of the ledger, for example redis://host:6379/0"
    )
    broker_url: SecretStr | None = Field(None, description="Celery broker; the ledger's Redis if not set")
    lease_seconds: float = Field(
        30.0, ge=1, le=DAY_SECONDS, description="how long a chunk stays with a worker that went silent"
    )
    write_limit_seconds: float = Field(
        WRITE_LIMIT_SECONDS,
        gt=0,
        le=3600,
        description="how long the write of one part may take; --overwrite waits so long after the lease of a "
        "worker that went silent",
    )
    job_ttl_seconds: int = Field(
        7 * DAY_SECONDS, ge=60, le=3650 * DAY_SECONDS, description="how long an ended job stays in the ledger"
    )
    result_ttl_seconds: int = Field(
        7 * DAY_SECONDS,
        ge=60,
        le=3650 * DAY_SECONDS,
        description="how long the rows of an ended job stay in Redis",
    )
    quota_items: int = Field(
        0, ge=0, description="no submit while this many items of all jobs wait to be done; 0: no quota"
    )
    quota_bytes: int = Field(
        0, ge=0, description="no submit while jobs without an output keep so much in Redis; 0: no quota"
    )

    @field_validator("broker_url")
    @classmethod
    def _check_broker(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _require_broker_scheme(value.get_secret_value())
        return value

    def require_redis_url(self) -> str:
        """Return the ledger's URL.

        Raises:
            UsageError: it is not set.
        """
        if self.redis_url is None:
            raise UsageError(
                "CLIPFLEET_REDIS_URL is not set: point it at your Redis (redis://host:6379/0), "
                "or start one here with `clipfleet-worker up` and run `source .clipfleet/env`"
            )
        return self.redis_url.get_secret_value()

    def require_broker_url(self) -> str:
        """Return the broker's URL, by default the ledger's; raises like `require_redis_url`."""
        if self.broker_url is not None:
            return self.broker_url.get_secret_value()
        url = self.require_redis_url()
        if url.startswith("unix://"):
            raise UsageError(
                "CLIPFLEET_REDIS_URL is a Unix socket, which Celery writes differently: "
                "set CLIPFLEET_BROKER_URL too (redis+socket:///path/of/the.socket)"
            )
        return url


def _require_broker_scheme(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in _BROKER_SCHEMES:
        raise ValueError(f"it must start with one of {', '.join(f'{name}://' for name in _BROKER_SCHEMES)}")
    if parts.scheme in SENTINEL_SCHEMES:
        parse_sentinel(url)
    else:
        _ = parts.port  # raises ValueError where it is not a number


def checked(kind: type[S], **given: Any) -> S:
    """Read settings from the environment, except those that are given.

    Raises:
        UsageError: a variable has an invalid value; the message names it.
    """
    try:
        return kind(**given)
    except ValidationError as error:
        problems = "; ".join(
            f"CLIPFLEET_{str(problem['loc'][0]).upper()}: {problem_text(problem)}"
            for problem in error.errors()
        )
        raise UsageError(f"invalid settings: {problems}") from None


def _is_meant(name: str, near: str) -> bool:
    """Whether two names are similar apart from a common unit suffix, which makes any two similar."""
    unit = f"_{near.rpartition('_')[2]}"
    if not name.endswith(unit):
        return True
    heads = name.removesuffix(unit), near.removesuffix(unit)
    return difflib.SequenceMatcher(None, *heads).ratio() >= _NEAR


def doubtful_variables(
    kind: type[BaseSettings], names: Iterable[str], *, has_all: bool
) -> Iterator[tuple[str, str | None]]:
    """Find variables with our prefix that are not settings, each with its closest setting.

    Args:
        kind: the settings that are read.
        names: names of all environment variables.
        has_all: `kind` has all settings but those of the gateway. Otherwise a name without a similar setting
            is skipped, as it may belong to another program. Only the gateway judges names of its own.
    """
    known = [name.upper() for name in kind.model_fields]
    reads_gateway = any(name.startswith(_OF_THE_GATEWAY) for name in known)
    for name in sorted(names):
        rest = name.upper().removeprefix(_PREFIX)
        if not name.upper().startswith(_PREFIX) or rest in known or _OF_KUBERNETES.search(rest):
            continue
        is_of_gateway = rest.startswith(_OF_THE_GATEWAY)
        if is_of_gateway and not reads_gateway:
            continue
        meant = [
            near for near in difflib.get_close_matches(rest, known, cutoff=_NEAR) if _is_meant(rest, near)
        ]
        meant = meant or [setting for setting in known if rest and setting.startswith(f"{rest}_")]
        if meant or has_all or is_of_gateway:
            yield name, _PREFIX + meant[0] if meant else None
