"""All keys, as objects `keys/NAME.json` in the gateway's place. Making one is atomic: a name is used once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import ValidationError

from clipfleet.contract.jobs import Lane
from clipfleet.errors import (
    OutputDamagedError,
    OutputTooNewError,
    OutputUnreachableError,
    UsageError,
    usage_errors,
)
from clipfleet.outputs import Output
from clipfleet.outputs.job_file import put_if
from clipfleet_gateway.keys.key import (
    KEY_VERSION,
    NAME_PATTERN,
    Key,
    made_key,
    new_secret,
    token_of,
)
from clipfleet_gateway.keys.prefixes import checked_prefix

FIRST_NAME = "first"
_FOLDER = "keys/"
_TRIES = 20  # of a change that others overtake


def now_in_utc() -> datetime:
    """The time of this machine."""
    return datetime.now(UTC)


class KeyRing:
    """Makes, finds and revokes keys.

    Every method raises `OutputUnavailableError` if the place cannot be read or written, and its subclasses
    for an object that is damaged or of a newer version: such a key opens nothing.
    """

    def __init__(self, place: Output, *, now: Callable[[], datetime] = now_in_utc) -> None:
        self._place = place
        self._now = now

    def probe(self) -> None:
        """Return if the place answers: keys can be listed, and one of them can be read."""
        name = next(self._place.names(_FOLDER), None)
        if name is not None:
            self._place.read(name)

    def add(
        self, name: str, *, lane: Lane = Lane.NORMAL, quota: int | None = None, sources: tuple[str, ...] = ()
    ) -> str:
        """Make a key, and return its token, which is kept nowhere.

        Args:
            name: letters, digits and hyphens; names of revoked keys stay taken.
            lane: see `Key`, like the following ones.
            quota: likewise.
            sources: likewise; see `checked_prefix`.

        Raises:
            UsageError: the name is taken, or a value is invalid; or a source and this place overlap.
        """
        secret = new_secret()
        if not re.fullmatch(NAME_PATTERN, name):
            raise UsageError(
                f"key {name!r}: name it with at most 40 small letters, digits and hyphens, such as ci-2"
            )
        self._require_apart(sources)
        with usage_errors(f"key {name}: "):
            key = made_key(name, secret, self._now(), lane=lane, quota=quota, sources=sources)
        if not self._place.create(_object(name), _written(key)):
            raise UsageError(f"there is a key {name!r} already, or was: choose another name")
        return token_of(name, secret)

    def _require_apart(self, sources: tuple[str, ...]) -> None:
        """Refuse prefixes with which a key would read what is in this place: the files of all keys."""
        place = checked_prefix(self._place.uri)
        for one in sources:
            if place.startswith(one) or one.startswith(place):
                raise UsageError(
                    f"source {one}: it overlaps with the gateway's own place, {place}, which has the files "
                    "of all keys; name folders or prefixes beside it, or set CLIPFLEET_GATEWAY_OUTPUT to "
                    "another place"
                )

    def first(self) -> str | None:
        """Make the first key of the place, and return its token; None if there is a key, or was."""
        if any(True for _ in self._place.names(_FOLDER)):
            return None
        try:
            return self.add(FIRST_NAME)
        except UsageError:  # another gateway starts at the same time
            return None

    def names(self) -> list[str]:
        """Names of all keys, revoked ones too."""
        names = (name.removeprefix(_FOLDER).removesuffix(".json") for name in self._place.names(_FOLDER))
        return [name for name in names if re.fullmatch(NAME_PATTERN, name)]

    def all(self) -> list[Key]:
        """All keys by name, revoked ones too."""
        return [key for key in map(self.find, self.names()) if key is not None]

    def find(self, name: str) -> Key | None:
        """The key of this name, which may be revoked."""
        data = self._place.read(_object(name))
        return None if data is None else _parsed(data, f"{self._place.uri}/{_object(name)}")

    def revoke(self, name: str) -> Key:
        """Let a key open nothing any more. Idempotent. Its batches and jobs go on.

        Raises:
            UsageError: there is no such key.
        """
        for _ in range(_TRIES):
            version = self._place.version(_object(name)) if re.fullmatch(NAME_PATTERN, name) else None
            key = self.find(name) if version else None
            if key is None:
                raise UsageError(f"there is no key {name!r}: `clipfleet-gateway keys list` names all")
            if key.revoked_at is not None:
                return key
            revoked = key.model_copy(update={"revoked_at": self._now()})
            if put_if(self._place, _object(name), _written(revoked), version):
                return revoked
        raise OutputUnreachableError(
            f"{self._place.uri}/{_object(name)}: other programs change it all the time"
        )


def _object(name: str) -> str:
    return f"{_FOLDER}{name}.json"


def _written(key: Key) -> bytes:
    return key.model_dump_json(indent=1).encode()


def _parsed(data: bytes, where: str) -> Key:
    try:
        version = json.loads(data)["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        version = None
    if isinstance(version, int) and version > KEY_VERSION:
        raise OutputTooNewError(f"{where} was written by a newer clipfleet: update this gateway")
    try:
        return Key.model_validate_json(data)
    except ValidationError:
        raise OutputDamagedError(f"{where} is damaged: remove it, and make another key") from None
