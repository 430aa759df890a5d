"""Credentials that are read again when the store refuses them: keys change under programs that run for days.

boto3 renews by itself only what says when it expires (roles). It never looks again at a credentials file that
was rewritten, nor at keys that the store stopped taking before their time. Imported together with boto3 only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

from botocore.credentials import CredentialResolver
from botocore.exceptions import NoCredentialsError
from botocore.session import Session, get_session


class RereadCredentials:
    """See `botocore.credentials.Credentials`: whatever is asked is answered by those read last."""

    def __init__(self, load: Callable[[], Any]) -> None:
        """Nothing is read yet. `load` gives None if this process has no credentials (yet)."""
        self._load = load
        self._lock = threading.Lock()
        self._present: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._current(), name, None)

    def get_frozen_credentials(self) -> Any:
        """Called for each signature.

        Raises:
            NoCredentialsError: there are none; they are looked for again with the next call.
        """
        current = self._current()
        if current is None:
            raise NoCredentialsError
        return current.get_frozen_credentials()

    def get_deferred_property(self, name: str) -> Callable[[], Any]:
        """See botocore's class."""
        return lambda: getattr(self, name)

    def forget(self) -> None:
        """Read them again with the next signature."""
        with self._lock:
            self._present = None

    def _current(self) -> Any:
        with self._lock:
            if self._present is None:
                self._present = self._load()
            return self._present

    # --- Also the provider of itself, so that nothing has to be found when a session is made ---

    METHOD = "clipfleet"

    def load(self) -> RereadCredentials:
        return self


def session_that_rereads() -> tuple[Session, RereadCredentials]:
    """A session of botocore like any other, and its credentials."""
    session = get_session()
    credentials = RereadCredentials(lambda: get_session().get_credentials())
    session.register_component("credential_provider", CredentialResolver([credentials]))
    return session, credentials


def reread_when_refused(client: Any, credentials: RereadCredentials, codes: Collection[str]) -> None:
    """Have a call that the store refuses for its credentials made once more, with those that are there now.

    The client is of the session whose credentials these are; the store says so by one of the codes.
    """

    def needs_retry(response: Any, attempts: int, **_: object) -> int | None:
        if response is None or response[1].get("Error", {}).get("Code") not in codes:
            return None
        credentials.forget()
        return 0 if attempts == 1 else None  # seconds to wait

    client.meta.events.register_first("needs-retry.s3", needs_retry)
