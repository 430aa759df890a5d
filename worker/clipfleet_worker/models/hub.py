"""Files of models in the Hugging Face hub's cache on this machine, and on the hub.

The only module that uses the hub. A file in the cache is used without a request: workers start quickly, also
without a network, and weights do not change under a running fleet.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

TRANSFORMERS_CONFIG = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
                    "tokenizer.model")  # fmt: skip
_REACH_TIMEOUT_SECONDS = 5.0


OnBytes = Callable[[int, int], None]  # of a file: bytes that are here, and all of them


class NotHereError(Exception):
    """A file is not on this machine."""


class NotThereError(OSError):
    """A file is not on the hub either."""


@dataclass(frozen=True, slots=True)
class HubStore:
    """The hub's cache on this machine and, if downloads are allowed, the hub for missing files."""

    may_download: bool
    on_bytes: OnBytes | None = None  # called during the download of each file, not of a tokenizer's

    def file(self, repository: str, names: Sequence[str]) -> Path:
        """The first of these files that exists.

        Raises:
            NotHereError: none is on this machine, and downloads are not allowed.
            NotThereError: the hub has none either.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        found = _cached(repository, names)
        if found is not None:
            return found
        self._require_hub()
        for name in names:
            try:
                return Path(hf_hub_download(repository, name, **_metered(self.on_bytes)))
            except LocalEntryNotFoundError:  # the network broke down
                raise
            except EntryNotFoundError:
                continue
        raise NotThereError(f"{repository} on the hub has no {' or '.join(names)}")

    def tokenizer(self, repository: str) -> Path:
        """Folder of a repository's tokenizer."""
        from huggingface_hub import snapshot_download

        found = _cached(repository, TOKENIZER_FILES)
        if found is not None:
            return found.parent
        self._require_hub()
        wanted = [*TOKENIZER_FILES, TRANSFORMERS_CONFIG]
        return Path(snapshot_download(repository, allow_patterns=wanted))

    def _require_hub(self) -> None:
        """Fail within seconds if the hub is out of reach; its own client retries for minutes.

        Raises:
            NotHereError: downloads are not allowed.
            OSError: the hub does not answer.
        """
        from huggingface_hub import constants

        if not self.may_download:
            raise NotHereError
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        request = Request(constants.ENDPOINT, method="HEAD")  # noqa: S310 - the operator's own setting
        try:
            urlopen(request, timeout=_REACH_TIMEOUT_SECONDS).close()  # noqa: S310 - the operator's own setting
        except HTTPError:
            return  # the hub answers
        except OSError as error:
            reason = getattr(error, "reason", error)
            if not isinstance(reason, ssl.SSLError):  # the client may know certificates that Python does not
                raise OSError(f"{constants.ENDPOINT} cannot be reached: {reason}") from error


def _metered(on_bytes: OnBytes | None) -> dict[str, Any]:
    """Options of a download that reports its bytes, if this version of the client has any."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # it is documented

    if on_bytes is None or "tqdm_class" not in signature(hf_hub_download).parameters:
        return {}
    report = on_bytes

    class Meter(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._here, self._all = options.get("initial") or 0, options.get("total") or 0
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]  # tqdm has no types

        def update(self, n: float | None = 1) -> Any:
            self._here += int(n or 0)
            if self._all:
                report(self._here, self._all)
            return super().update(n)

    return {"tqdm_class": Meter}


def _cached(repository: str, names: Sequence[str]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    paths = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def repositories_in_cache() -> list[str]:
    """Repositories of models in the hub's cache, complete or not; sorted."""
    from huggingface_hub import constants

    names = [path.name.removeprefix("models--") for path in Path(constants.HF_HUB_CACHE).glob("models--*--*")]
    return sorted(name.replace("--", "/", 1) for name in names)
