"""Reloads credentials when the store refuses them, for programs that run for days.

boto3 refreshes only credentials with an expiry (roles). It never rereads a rewritten credentials file, nor
keys that the store revoked early. Imported only together with boto3.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

from botocore.credentials import CredentialResolver
from botocore.exceptions import NoCredentialsError
from botocore.session import Session, get_session


class RereadCredentials:
    """The credentials loaded last; see `botocore.credentials.Credentials`."""

    def __init__(self, load: Callable[[], Any]) -> None:
        """Load nothing yet. `load` returns None while this process has no credentials."""
        self._load = load
        self._lock = threading.Lock()
        self._present: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._current(), name, None)

    def get_frozen_credentials(self) -> Any:
        """Return the current credentials, once per signature.

        Raises:
            NoCredentialsError: there are none; the next call tries again.
        """
        current = self._current()
        if current is None:
            raise NoCredentialsError
        return current.get_frozen_credentials()

    def get_deferred_property(self, name: str) -> Callable[[], Any]:
        """See botocore's class."""
        return lambda: getattr(self, name)

    def forget(self) -> None:
        """Reload the credentials for the next signature."""
        with self._lock:
            self._present = None

    def _current(self) -> Any:
        with self._lock:
            if self._present is None:
                self._present = self._load()
            return self._present

    # --- Its own provider, so that creating a session loads nothing ---

    METHOD = "clipfleet"

    def load(self) -> RereadCredentials:
        return self


def session_that_rereads() -> tuple[Session, RereadCredentials]:
    """Create a botocore session with reloading credentials."""
    session = get_session()
    credentials = RereadCredentials(lambda: get_session().get_credentials())
    session.register_component("credential_provider", CredentialResolver([credentials]))
    return session, credentials


def reread_when_refused(client: Any, credentials: RereadCredentials, codes: Collection[str]) -> None:
    """Retry a call once, with reloaded credentials, if the store refuses it with one of the codes.

    The client must belong to the session of these credentials.
    """

    def needs_retry(response: Any, attempts: int, **_: object) -> int | None:
        if response is None or response[1].get("Error", {}).get("Code") not in codes:
            return None
        credentials.forget()
        return 0 if attempts == 1 else None  # seconds to wait

    client.meta.events.register_first("needs-retry.s3", needs_retry)
