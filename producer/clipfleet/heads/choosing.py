"""The heads that a job takes: read, and compared with the model that makes its vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from clipfleet.contract.model_names import is_local_model, normalise_model
from clipfleet.errors import UsageError
from clipfleet.heads.files import HeadFile, read_head

HeadLike = str | Path | HeadFile


def read_heads(given: HeadLike | Sequence[HeadLike]) -> tuple[HeadFile, ...]:
    """Read and check the heads of a job, in order; one path is one head.

    Raises:
        UsageError: see `read_head`; or two have the same name, which is that of their columns.
    """
    several = [given] if isinstance(given, str | Path | HeadFile) else list(given)
    found: dict[str, HeadLike] = {}
    heads = []
    for one in several:
        file = one if isinstance(one, HeadFile) else read_head(_path_of(one))
        name = file.head.name
        if name in found:
            where = "" if isinstance(one, HeadFile) else f"{one}: "
            raise UsageError(
                f"{where}another head is also called {name!r}, and would fill the same columns: give each a "
                "name of its own, with `name=` when it is fitted or imported"
            )
        found[name] = one
        heads.append(file)
    return tuple(heads)


def _path_of(given: str | Path) -> Path:
    text = str(given)
    if not text.strip():
        raise UsageError("the path of a head is empty: give a file, or leave the option out")
    if "://" in text:
        raise UsageError(f"head {text!r}: a head is a local file: copy it from there first")
    return Path(given)


def require_model(
    heads: Iterable[HeadFile], model: str, *, decode: str | None = None, exif: str | None = None
) -> None:
    """Refuse heads of another model, or of images that are read otherwise, before a job is submitted.

    Names are compared; of a local folder only a worker, which compares weights, knows what it is.

    Args:
        heads: of the job.
        model: of the job, normalised.
        decode: likewise; None: it makes no vectors.
        exif: likewise.

    Raises:
        UsageError: a head takes other vectors.
    """
    for one in heads:
        wanted = _normalised(one.head.input.model)
        if wanted != model and not (is_local_model(wanted) or is_local_model(model)):
            raise UsageError(
                f"head {one.head.name!r} takes vectors of {wanted}, this job would make those of {model}: "
                f"give `model=` {wanted}, or a head that was fitted on vectors of {model}"
            )
        for option, given in (("decode", decode), ("exif", exif)):
            fitted = getattr(one.head.input, option)
            if None not in (given, fitted) and given != fitted:
                raise UsageError(
                    f"head {one.head.name!r} takes vectors of images that were read with `{option}=` "
                    f"{fitted}, this job would read them with {given}: give `{option}=` {fitted}, or a head "
                    f"that was fitted on images read with {given}"
                )


def require_length(heads: Iterable[HeadFile], model: str, dimension: int) -> None:
    """Refuse heads for vectors of another length.

    Args:
        heads: to be used on stored vectors.
        model: that made the vectors, normalised.
        dimension: length of a vector.

    Raises:
        UsageError: a head takes other vectors.
    """
    for one in heads:
        if one.head.input.dim != dimension:
            raise UsageError(
                f"head {one.head.name!r} takes vectors of length {one.head.input.dim}, these have length "
                f"{dimension}: give a head that was fitted on vectors of {model}"
            )


def _normalised(model: str) -> str:
    try:
        return normalise_model(model)
    except ValueError:  # of another program, or a later version
        return model
