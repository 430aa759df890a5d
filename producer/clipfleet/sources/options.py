"""How a source is to be read, where its name does not say it."""

from __future__ import annotations

from dataclasses import dataclass

from clipfleet.sources.uris import base_of


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a caller may say beside the name of a source."""

    url_column: str | None = None  # field with the URLs, paths or pictures, where its name is no usual one
    id_column: str | None = None  # field with the user's names of the items
    base_uri: str | None = None  # what relative paths and bare keys are below

    @property
    def base(self) -> str:
        """What is put before relative names; empty: the source decides."""
        return base_of(self.base_uri) if self.base_uri else ""

    def described(self) -> dict[str, str]:
        """What changes the meaning of a list, in the words of `SourceDescription.options`."""
        return {"base_uri": self.base_uri} if self.base_uri else {}


BY_NAME = ReadOptions()  # the name of the source says it all
