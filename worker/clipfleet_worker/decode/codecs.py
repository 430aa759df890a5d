"""Codecs that an installation may lack: libavif inside Pillow, and pillow-heif, which is an extra.

Looking for them loads nothing: pillow-heif is imported by the process that reads such a file.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from PIL import AvifImagePlugin

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure


def missing_codec(image_format: str) -> str | None:
    """What this worker lacks to read a format, and how to get it; None if it lacks nothing."""
    if image_format == "AVIF" and not AvifImagePlugin.SUPPORTED:
        return "the worker's Pillow was built without AVIF; run `pip install --force-reinstall pillow`"
    if image_format == "HEIF" and find_spec("pillow_heif") is None:
        return "the worker reads HEIC and HEIF with pillow-heif; run `pip install -e '.[heif]'` in its clone"
    return None


def require_codec(image_format: str) -> None:
    """Check that there is a codec for an allowed format.

    Raises:
        ItemFailure: `format_refused`.
    """
    missing = missing_codec(image_format)
    if missing is not None:
        raise ItemFailure(ErrorCode.FORMAT_REFUSED, f"{image_format}: {missing}")


def load_codec(image_format: str) -> None:
    """Have Pillow know the format; idempotent, and cheap after the first time."""
    require_codec(image_format)
    if image_format == "HEIF":
        _register_heif()


@cache
def _register_heif() -> None:
    import pillow_heif

    # Only the primary image is read, and children are as many as threads already.
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
