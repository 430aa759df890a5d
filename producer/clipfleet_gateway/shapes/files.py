"""`/v1/files`: what is uploaded, listed and deleted, as OpenAI writes it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from clipfleet_gateway.files.record import FileRecord
from clipfleet_gateway.shapes.bodies import Shape

MOST_FILES = 10_000  # of a list
_DEFAULT_FILES = 1_000
_HOUR_SECONDS, _DAY_SECONDS = 3600, 86_400

ExpirySeconds = Annotated[int, Field(ge=_HOUR_SECONDS, le=30 * _DAY_SECONDS)]


class FileUpload(Shape):
    """A file, and what it is for."""

    file: Annotated[bytes, Field(description="content, with a file name")]
    purpose: Annotated[
        Literal["batch", "user_data", "vision"],
        Field(description="`batch`: requests, one per line; `user_data` and `vision`: an image"),
    ]
    expires_after_anchor: Annotated[
        Literal["created_at"] | None,
        Field(alias="expires_after[anchor]", description="goes with `expires_after[seconds]`"),
    ] = None
    expires_after_seconds: Annotated[
        ExpirySeconds | None,
        Field(
            alias="expires_after[seconds]",
            description="time after which the file is removed; default: never",
        ),
    ] = None


class FileObject(Shape):
    """A file of the key."""

    id: Annotated[str, Field(description="what requests name it by")]
    object: Literal["file"] = "file"
    bytes: Annotated[int, Field(description="size")]
    created_at: Annotated[int, Field(description="in seconds since 1970")]
    expires_at: Annotated[int | None, Field(description="in seconds since 1970; null: never")]
    filename: str
    purpose: Annotated[str, Field(description="as it was uploaded; `batch_output`: a batch has written it")]
    status: Annotated[Literal["processed"], Field(description="a file can be used at once")] = "processed"

    @classmethod
    def of(cls, record: FileRecord) -> Self:
        """The file of a record."""
        return cls(**record.model_dump(exclude={"schema_version", "sha256"}))


class FilesQuery(Shape):
    """Which files to list."""

    after: Annotated[str | None, Field(description="id of the last file of the page before")] = None
    limit: Annotated[int, Field(ge=1, le=MOST_FILES, description="files of a page")] = _DEFAULT_FILES
    order: Annotated[Literal["asc", "desc"], Field(description="by age; `desc`: the newest first")] = "desc"
    purpose: Annotated[str | None, Field(description="only files of this purpose")] = None


class FileList(Shape):
    """Some files of the key, by age."""

    object: Literal["list"] = "list"
    data: tuple[FileObject, ...]
    first_id: str | None
    last_id: str | None
    has_more: Annotated[bool, Field(description="whether a page follows: ask for it with `after`")]


class FileDeleted(Shape):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
