"""Opens `s3://...` as a source: a list, a table, shards, a pattern, an image or a prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice

from clipfleet.errors import SourceError
from clipfleet.s3.client import SCHEME, S3Client, S3Object, default_client, split_s3_uri
from clipfleet.sources.batches import Source
from clipfleet.sources.files import ReadOptions
from clipfleet.sources.lists.formats import is_shard_name, list_opener, refuse_pattern_of_lists, require_fit
from clipfleet.sources.s3_objects import ObjectFile, PrefixSource, is_hidden, listing
from clipfleet.sources.tar import Shard, TarSource, shards_state
from clipfleet.sources.walk import IMAGE_EXTENSIONS, Pattern, expand_braces, has_wildcards, is_image_name

_LOOKED_AT = 10_000  # objects of a prefix that decide between images and shards


def open_s3(uri: str, options: ReadOptions) -> Source:
    """Open the source at an S3 URI, whose key is used verbatim.

    A key with the extension of a list, a table or an image is that object. Any other key is a prefix, with or
    without a slash: all images below it, or all shards if the first match is a shard.

    Raises:
        SourceError: it does not exist, or access is denied.
        SourceUnavailableError: the store is unavailable.
        UsageError: the URI or the S3 configuration is invalid.
    """
    bucket, key = split_s3_uri(uri)
    client = default_client()
    opener = None if has_wildcards(key) else list_opener(key)
    require_fit(uri, options, is_list=opener is not None)
    if opener is not None:
        return opener(ObjectFile(client, bucket, key), options)
    if is_shard_name(key):
        return _shards(client, bucket, key)
    if has_wildcards(key):
        refuse_pattern_of_lists(uri)
        return _pattern(client, bucket, key)
    if is_image_name(key):
        file = ObjectFile(client, bucket, key)
        found = file.listed()
        return PrefixSource(lambda: [found], file.folder, uri=file.uri)
    return _prefix(client, bucket, key)


def _shards(client: S3Client, bucket: str, keys: str) -> Source:
    """Open shards by name, with braces or wildcards."""
    found: list[S3Object] = []
    for key in expand_braces(keys):
        if has_wildcards(key):
            found += _matching(client, bucket, key)()
        else:
            found.append(S3Object(key, 0))
    return _tar_source(client, bucket, f"{SCHEME}{bucket}/{keys}", found)


def _pattern(client: S3Client, bucket: str, pattern: str) -> Source:
    where = f"{SCHEME}{bucket}/"
    return PrefixSource(
        _matching(client, bucket, pattern),
        where + _fixed_prefix(pattern),
        uri=where + pattern,
        wanted="no object matches this pattern",
    )


def _prefix(client: S3Client, bucket: str, key: str) -> Source:
    prefix = f"{key}/" if key and not key.endswith("/") else key
    where = f"{SCHEME}{bucket}/{prefix}"
    objects = partial(listing, client, bucket, prefix)
    names = (one.key for one in islice(objects(), _LOOKED_AT) if not is_hidden(one.key[len(prefix) :]))
    first = next((name for name in names if is_image_name(name) or is_shard_name(name)), None)
    if first is not None and is_shard_name(first):
        found = (one for one in objects() if is_shard_name(one.key))
        return _tar_source(client, bucket, where, sorted(found, key=lambda one: one.key))
    return PrefixSource(
        objects,
        where,
        uri=where,
        wanted=f"no images found; looked for keys that end in {' '.join(IMAGE_EXTENSIONS)}",
        accepts=lambda name: is_image_name(name) and not is_hidden(name),
    )


def _tar_source(client: S3Client, bucket: str, uri: str, objects: Iterable[S3Object]) -> Source:
    found = list(objects)
    if not found:
        raise SourceError(f"{uri}: no object matches this pattern")
    shards = [
        Shard(f"{SCHEME}{bucket}/{one.key}", partial(ObjectFile, client, bucket, one.key)) for one in found
    ]
    states = [(shard.uri, str(one.size_bytes)) for shard, one in zip(shards, found, strict=True)]
    return TarSource(shards, uri=uri, state=shards_state(states))


def _matching(client: S3Client, bucket: str, pattern: str) -> Callable[[], Iterable[S3Object]]:
    """List the objects whose keys match, in the store's order."""
    prefix = _fixed_prefix(pattern)
    wanted = Pattern.of(pattern[len(prefix) :].split("/"))

    def objects() -> Iterable[S3Object]:
        return (one for one in listing(client, bucket, prefix) if _matches(wanted, one.key[len(prefix) :]))

    return objects


def _matches(pattern: Pattern, name: str) -> bool:
    *folders, last = name.split("/")
    positions = pattern.start()
    for folder in folders:
        positions = pattern.descend(positions, folder, is_link=False)
    return pattern.matches_file(positions, last)


def _fixed_prefix(pattern: str) -> str:
    """The folders before the first wildcard, with a trailing slash."""
    parts = pattern.split("/")
    fixed = next(number for number, part in enumerate(parts) if has_wildcards(part))
    return "".join(f"{part}/" for part in parts[:fixed])
