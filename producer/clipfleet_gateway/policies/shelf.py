"""All policies, as objects of the gateway's place. Policies are never changed; only which one is current is.

policies/NAME.json                    which policy the name means
policies/NAME/SHA256.json             a policy in full
policies/NAME/SHA256.safetensors      the file of a head of one of them
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime

from pydantic import AwareDatetime, ValidationError

from clipfleet.contract.label_sets import FrozenModel
from clipfleet.contract.policies import POLICY_NAME_PATTERN, Policy
from clipfleet.errors import (
    OutputDamagedError,
    OutputTooNewError,
    OutputUnavailableError,
    UsageError,
)
from clipfleet.heads.files import HeadFile, parse_head
from clipfleet.moderation.policy_files import PolicyFile
from clipfleet.outputs import Output
from clipfleet.outputs.job_file import put_if
from clipfleet_gateway.keys.ring import now_in_utc
from clipfleet_gateway.policies.errors import no_policy_named, no_such_policy
from clipfleet_gateway.policies.stored import StoredPolicy, Versions

MOST_POLICY_BYTES = 1 << 20  # each request's job carries one
POLICY_VERSION = 1
_FOLDER = "policies/"
_JSON, _HEAD = ".json", ".safetensors"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRIES = 20  # of a change that others overtake


class CurrentPolicy(FrozenModel):
    """Which policy a name means."""

    schema_version: int = POLICY_VERSION
    name: str
    sha256: str
    added_at: AwareDatetime


class PolicyShelf:
    """Keeps and finds policies.

    Every method raises `OutputUnavailableError` if the place cannot be read or written, and its subclasses
    for an object that is damaged or of a newer version.
    """

    def __init__(self, place: Output, *, now: Callable[[], datetime] = now_in_utc) -> None:
        self._place = place
        self._now = now

    def add(self, file: PolicyFile) -> tuple[StoredPolicy, bool]:
        """Keep a policy, and let its name mean it; the second value is False if it does already.

        Raises:
            UsageError: it is too large.
        """
        stored = StoredPolicy.of(file.policy)
        text = file.policy.model_dump_json().encode()
        if len(text) > MOST_POLICY_BYTES:
            raise UsageError(
                f"policy {stored.name!r} has {len(text):,} bytes with its labels and certificates, which the "
                f"job of each request carries: at most {MOST_POLICY_BYTES:,}; use fewer labels"
            )
        for head in file.heads:
            self._place.create(_head(stored.name, head.of_job.sha256), head.data)
        self._place.create(_policy(stored.name, stored.sha256), text)
        for _ in range(_TRIES):
            version = self._place.version(_current(stored.name))
            found = self._found(stored.name) if version else None
            if found is not None and found.sha256 == stored.sha256:
                return stored, False
            now = CurrentPolicy(name=stored.name, sha256=stored.sha256, added_at=self._now())
            data = now.model_dump_json(indent=1).encode()
            if put_if(self._place, _current(stored.name), data, version):
                return stored, True
        raise OutputUnavailableError(
            f"{self._place.uri}/{_current(stored.name)}: other programs change it all the time"
        )

    def remove(self, name: str) -> None:
        """Let a name mean nothing any more. Its policies stay for what has begun with them.

        Raises:
            UsageError: there is no such policy.
        """
        if name not in self.names():
            raise UsageError(f"there is no policy {name!r}: `clipfleet-gateway policies list` names all")
        self._place.remove(_current(name))

    def names(self) -> list[str]:
        """Names that mean a policy."""
        names = (name.removeprefix(_FOLDER).removesuffix(_JSON) for name in self._place.names(_FOLDER))
        return [name for name in names if re.fullmatch(POLICY_NAME_PATTERN, name)]

    def current(self, name: str) -> CurrentPolicy | None:
        """Which policy a name means; None: none."""
        return self._found(name) if re.fullmatch(POLICY_NAME_PATTERN, name) else None

    def versions(self, name: str) -> Versions | None:
        """All policies of a name that means one."""
        found = self.current(name)
        if found is None:
            return None
        folder = f"{_FOLDER}{name}/"
        names = (one.removeprefix(folder) for one in self._place.names(folder) if one.endswith(_JSON))
        hashes = (one.removesuffix(_JSON) for one in names)
        return Versions(found.sha256, tuple(one for one in hashes if _SHA256.fullmatch(one)))

    def load(self, name: str, sha256: str) -> StoredPolicy:
        """A policy that was kept.

        Raises:
            OutputDamagedError: it is gone, or is not what was written.
        """
        where = f"{self._place.uri}/{_policy(name, sha256)}"
        data = self._place.read(_policy(name, sha256))
        if data is None:
            raise OutputDamagedError(f"{where} is gone: add the policy again")
        try:
            found = StoredPolicy.of(Policy.model_validate_json(data))
        except ValidationError:
            found = None
        if found is None or found.sha256 != sha256:
            raise OutputDamagedError(f"{where} is damaged: remove it, and add the policy again")
        return found

    def require(self, model: str | None) -> StoredPolicy:
        """The policy that a request names, see `split_model`; without a name the only one.

        Raises:
            ApiError: there is none (404), or several or none without a name (400).
        """
        if model is None:
            names = self.names()
            if len(names) != 1:
                raise no_policy_named(names)
            model = names[0]
        name, digits = split_model(model)
        versions = self.versions(name)
        sha256 = versions.of_digits(digits) if versions is not None else None
        if sha256 is None:
            raise no_such_policy(model, self.names())
        return self.load(name, sha256)

    def head_data(self, name: str, sha256: str) -> bytes:
        """The file of a head. Raises `OutputDamagedError` if it is gone."""
        data = self._place.read(_head(name, sha256))
        if data is None:
            raise OutputDamagedError(f"{self._place.uri}/{_head(name, sha256)} is gone: add the policy again")
        return data

    def file_of(self, stored: StoredPolicy) -> PolicyFile:
        """The policy with the files of its heads. Raises `OutputDamagedError`."""
        heads: list[HeadFile] = []
        for one in stored.policy.heads:
            try:
                heads.append(parse_head(self.head_data(stored.name, one.sha256), f"head {one.name!r}"))
            except UsageError as error:
                raise OutputDamagedError(f"policy {stored.full_name}: {error}") from error
        return PolicyFile(stored.policy, tuple(heads))

    def _found(self, name: str) -> CurrentPolicy | None:
        data = self._place.read(_current(name))
        return None if data is None else _parsed(data, f"{self._place.uri}/{_current(name)}")


def split_model(model: str) -> tuple[str, str]:
    """Name and first digits of the hash, of `NAME` or `NAME@DIGITS`."""
    name, _, digits = model.partition("@")
    return name, digits


def _current(name: str) -> str:
    return f"{_FOLDER}{name}{_JSON}"


def _policy(name: str, sha256: str) -> str:
    return f"{_FOLDER}{name}/{sha256}{_JSON}"


def _head(name: str, sha256: str) -> str:
    return f"{_FOLDER}{name}/{sha256}{_HEAD}"


def _parsed(data: bytes, where: str) -> CurrentPolicy:
    try:
        version = json.loads(data)["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        version = None
    if isinstance(version, int) and version > POLICY_VERSION:
        raise OutputTooNewError(f"{where} was written by a newer clipfleet: update this gateway")
    try:
        return CurrentPolicy.model_validate_json(data)
    except ValidationError:
        raise OutputDamagedError(f"{where} is damaged: add the policy again") from None
