"""A key: its name, and what it may do. Frozen data, no I/O."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, Field

from clipfleet.contract.jobs import Lane
from clipfleet.contract.label_sets import FrozenModel

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,39}$"
_TOKEN = re.compile(r"cf-([a-z0-9][a-z0-9-]{0,39})-([0-9a-f]{64})")
_SECRET_BYTES = 32
KEY_VERSION = 1


class Key(FrozenModel):
    """What is kept of a key. Its name is the owner of files, batches and jobs, so it is never used again."""

    schema_version: int = KEY_VERSION
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # of the secret
    lane: Lane = Lane.NORMAL  # of its batches and jobs
    quota: Annotated[int, Field(ge=1)] | None = None  # images and texts in a day (UTC); None: any number
    sources: tuple[str, ...] = ()  # besides public http(s), data: and its own files
    created_at: AwareDatetime
    revoked_at: AwareDatetime | None = None

    def opens_with(self, secret: str) -> bool:
        """Whether this is its secret, and it is not revoked; in constant time."""
        is_right = hmac.compare_digest(self.sha256, digest(secret))
        return is_right and self.revoked_at is None


def digest(secret: str) -> str:
    """What is kept of a secret. It has 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def new_secret() -> str:
    """A secret that nobody guesses."""
    return secrets.token_hex(_SECRET_BYTES)


def token_of(name: str, secret: str) -> str:
    """What a client sends."""
    return f"cf-{name}-{secret}"


def split_token(token: str) -> tuple[str, str] | None:
    """Name and secret of a token; None if it is none of ours."""
    found = _TOKEN.fullmatch(token)
    return (found[1], found[2]) if found else None


def made_key(
    name: str, secret: str, now: datetime, *, lane: Lane, quota: int | None, sources: tuple[str, ...]
) -> Key:
    """A key that is not kept yet. Raises `ValidationError`."""
    return Key(name=name, sha256=digest(secret), lane=lane, quota=quota, sources=sources, created_at=now)
