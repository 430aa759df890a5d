"""Opens a local path or pattern as a source."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from clipfleet.errors import SourceError
from clipfleet.sources.batches import Source
from clipfleet.sources.files import LocalFile, ReadOptions
from clipfleet.sources.lists.formats import (
    SUPPORTED,
    is_shard_name,
    list_opener,
    refuse_pattern_of_lists,
    require_fit,
)
from clipfleet.sources.tar import Shard, TarSource, shards_state
from clipfleet.sources.uris import local_uri, utf8_name
from clipfleet.sources.walk import (
    expand_braces,
    file_source,
    folder_source,
    has_wildcards,
    is_image_name,
    matching_files,
    pattern_source,
)

_PACKED_SHARDS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_local(text: str, options: ReadOptions) -> Source:
    """Open the source at a path or pattern; an existing file takes precedence over a pattern.

    Raises:
        SourceError: it does not exist, its kind is unsupported, or its header is invalid.
    """
    path = _absolute(text)
    opener = list_opener(path.name) if path.is_file() else None
    require_fit(text, options, is_list=opener is not None)
    if opener is not None:
        return opener(LocalFile(path), options)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    if path.exists():
        raise SourceError(f"{utf8_name(str(path))}: neither a folder nor a regular file; {SUPPORTED}")
    if is_shard_name(text):
        return _shards(path, [*_named_shards(text)])
    if has_wildcards(text):
        refuse_pattern_of_lists(text)
        return pattern_source(path)
    raise SourceError(f"{utf8_name(str(path))}: does not exist")


def _folder(path: Path) -> Source:
    """The images below a folder, or the shards directly in a folder without images."""
    shards = []
    has_images = False
    try:
        with os.scandir(path) as entries:
            for name in (entry.name for entry in entries if not entry.name.startswith(".")):
                if is_shard_name(name):
                    shards.append(path / name)
                has_images = has_images or is_image_name(name)
    except OSError as error:
        raise SourceError(f"{utf8_name(str(path))}: cannot be read: {error.strerror}") from error
    if not shards:
        return folder_source(path)
    if has_images:
        raise SourceError(
            f"{utf8_name(str(path))}: holds images and .tar files; "
            f"choose with a pattern: '{utf8_name(path.name)}/*.tar' or '{utf8_name(path.name)}/**/*.jpg'"
        )
    return _shards(path, sorted(shards))


def _file(path: Path) -> Source:
    if is_shard_name(path.name):
        return _shards(path, [path])
    if is_image_name(path.name):
        return file_source(path)
    name = utf8_name(str(path))
    if path.name.lower().endswith(_PACKED_SHARDS):
        raise SourceError(f"{name}: cannot read from a compressed archive; decompress it to a .tar")
    raise SourceError(f"{name}: unsupported kind of file; {SUPPORTED}")


def _named_shards(text: str) -> Iterator[Path]:
    for name in expand_braces(text):
        path = _absolute(name)
        if path.exists() or not has_wildcards(name):
            yield path
            continue
        found = [*matching_files(path)]
        if not found:
            raise SourceError(f"{utf8_name(str(path))}: no file matches this pattern")
        yield from found


def _shards(path: Path, shards: list[Path]) -> Source:
    found = [Shard(local_uri(str(shard)), partial(LocalFile, shard)) for shard in shards]
    states = [(shard.uri, " ".join(shard.open().state().values())) for shard in found]
    return TarSource(found, uri=local_uri(str(path)), state=shards_state(states))


def _absolute(text: str) -> Path:
    path = Path(text)
    with contextlib.suppress(RuntimeError):  # no such user or home: an ordinary name
        path = path.expanduser()
    try:
        path.exists()
    except OSError as error:
        raise SourceError(f"{utf8_name(text)}: {error.strerror}") from error
    return path.absolute()
