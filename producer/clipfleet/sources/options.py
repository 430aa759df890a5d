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
    holds_texts: bool = False  # instead of URLs: `url_column` is the field with the text then

    def base_in(self, folder: str) -> str:
        """What is put before the relative names of a list in this folder; empty: they are no names."""
        if self.holds_texts:
            return ""
        return base_of(self.base_uri) if self.base_uri else folder

    @property
    def content_field(self) -> str:
        """Field of what is given without one."""
        return "text" if self.holds_texts else "url"

    @property
    def content_option(self) -> str:
        """Option of the command line that sets `url_column`."""
        return "--text-column" if self.holds_texts else "--url-column"

    def described(self) -> dict[str, str]:
        """What changes the meaning of a list, in the words of `SourceDescription.options`."""
        return {"base_uri": base_of(self.base_uri)} if self.base_uri else {}


BY_NAME = ReadOptions()  # the name of the source says it all
