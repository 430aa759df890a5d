"""How a route is declared: one `Operation` beside its handler, which is both registered and documented.

A class of routes yields them, and nothing is registered in another way:

    _GET = Operation(
        "GET", "/v1/files/{file_id}", "getFile", "Say what is known of a file.",
        answers={200: FileObject}, path_parameters={"file_id": "such as `file-1f0c`"}, errors=(404,),
    )

    class FileRoutes:
        def operations(self) -> Iterable[Served]:
            yield _GET, self._get

All shapes are pydantic models, usually of `shapes`; their docstrings and the descriptions of their fields are
what clients read at `/openapi.json`. A field of an answer is always served, as null if it has no value.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from aiohttp import web
from pydantic import BaseModel

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware: TypeAlias = Any  # aiohttp's decorator returns one
Shape: TypeAlias = Any  # a pydantic model, or a union or list of some
_PARAMETER = re.compile(r"\{(\w+)(?::[^}]*)?\}")


@dataclass(frozen=True)
class Form:
    """A body of `multipart/form-data`; a field of the type `bytes` is a file."""

    shape: type[BaseModel]


@dataclass(frozen=True)
class Raw:
    """An answer that is no JSON object of ours."""

    media_type: str
    meaning: str


@dataclass(frozen=True)
class Operation:
    """A method and a path, and what is sent and answered there.

    Needs a key, unless the path is in `guards.OPEN`. Errors that every operation may end in are not listed.
    """

    method: str
    path: str  # as aiohttp matches it
    name: str  # `operationId`, which generated clients call it by: a verb first, in camel case
    summary: str  # what it does, in a sentence
    answers: Mapping[int, Shape | Raw]  # by status
    body: Shape | Form | None = None  # of the request; a shape is sent as JSON
    query: type[BaseModel] | None = None  # parameters in the URL, by field
    path_parameters: Mapping[str, str] = field(default_factory=dict)  # what each in the path is
    headers: Mapping[str, str] = field(default_factory=dict)  # optional ones that are read, and what they do
    errors: tuple[int, ...] = ()  # statuses of its own, such as 404

    def __post_init__(self) -> None:
        """Raises `ValueError` if the parameters of the path are not those described."""
        if set(_PARAMETER.findall(self.path)) != set(self.path_parameters):
            raise ValueError(f"{self.path}: describe each parameter of the path in path_parameters")

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it, and metrics label it."""
        return _PARAMETER.sub(r"{\1}", self.path)


Served: TypeAlias = tuple[Operation, Handler]
