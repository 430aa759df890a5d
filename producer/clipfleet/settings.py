"""Settings from the environment (prefix `CLIPFLEET_`), as frozen values that are checked at start."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from clipfleet.errors import UsageError

S = TypeVar("S", bound=BaseSettings)
CommaSeparated = Annotated[tuple[str, ...], NoDecode]


class _Base(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="CLIPFLEET_", frozen=True, env_ignore_empty=True)


class Settings(_Base):
    """What every program that makes or reads jobs needs."""

    redis_url: SecretStr | None = Field(
        None, description="Redis of the ledger, for example redis://host:6379/0"
    )
    broker_url: SecretStr | None = Field(None, description="Celery broker; the ledger's Redis if not set")
    lease_seconds: float = Field(
        30.0, ge=1, description="how long a chunk stays with a worker that went silent"
    )
    job_ttl_seconds: int = Field(7 * 86400, ge=60, description="how long an ended job stays in the ledger")

    def require_redis_url(self) -> str:
        """The ledger's URL.

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
        """The broker's URL, see `require_redis_url`."""
        return self.broker_url.get_secret_value() if self.broker_url else self.require_redis_url()


def split_commas(value: object) -> object:
    """Turn `"a, b"` into `("a", "b")`; leave other values to pydantic."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def load_settings() -> Settings:
    """Settings from the environment.

    Raises:
        UsageError: a variable has a value that cannot be used; the message names it.
    """
    return checked(Settings)


def checked(kind: type[S]) -> S:
    """An instance from the environment, with a `UsageError` instead of pydantic's report."""
    try:
        return kind()
    except ValidationError as error:
        problems = "; ".join(
            f"CLIPFLEET_{'_'.join(str(part) for part in problem['loc'][:1]).upper()}: {problem['msg']}"
            for problem in error.errors()
        )
        raise UsageError(f"settings cannot be used: {problems}") from None
