"""Webdataset roots in the layout of CLIP_benchmark: their files, and the truth beside the images.

ROOT/classnames.txt                             one name per line; line i is label i
ROOT/zeroshot_classification_templates.txt      one prompt per line, `{c}` or `{}` stands for the name
ROOT/dataset_type.txt                           classification (default), multilabel or retrieval
ROOT/SPLIT/nshards.txt, ROOT/SPLIT/0.tar ...    images, each with a .cls, .npy or .txt of the same name
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path

from clipfleet.errors import SourceError, SourceUnavailableError
from clipfleet.outputs import objects
from clipfleet.s3.client import SCHEME, default_client, split_s3_uri, with_s3_scheme
from clipfleet.s3.file import S3File
from clipfleet.sources.files import LocalFile, SourceFile
from clipfleet.sources.s3_objects import ObjectFile, listing
from clipfleet.sources.tar import groups
from clipfleet.sources.walk import IMAGE_EXTENSIONS

CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
DATASET_TYPE = "dataset_type.txt"
INSTANCES = "instances.jsonl"  # of WinoGAViL, see `sets`
SHARDS = "nshards.txt"
_LISTED = 10_000  # objects of an S3 root that are looked at for the names of its splits


class DatasetType(StrEnum):
    """Content of `dataset_type.txt`."""

    CLASSIFICATION = "classification"
    MULTILABEL = "multilabel"
    RETRIEVAL = "retrieval"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a split, in the order of the items of its job."""

    item_id: str
    where: str  # shard and key, for messages
    texts: dict[str, bytes]  # members of the same key, by extension


@dataclass(frozen=True, slots=True)
class Root:
    """One split of a root."""

    uri: str
    split: str
    kind: DatasetType
    shards: tuple[str, ...]
    state: dict[str, str]  # version of the shards; another one is another evaluation

    @property
    def name(self) -> str:
        """Name of the data set as CLIP_benchmark writes it, such as `wds/cifar10`."""
        return f"wds/{self.uri.rstrip('/').rpartition('/')[2].removeprefix('wds_')}"

    @property
    def words(self) -> str:
        """The split, for people."""
        return f"{self.uri}, split {self.split}"

    @property
    def source(self) -> str:
        """The shards as one source of a job."""
        last = len(self.shards) - 1
        folder = f"{self.uri}/{self.split}"
        if last and "{" in folder:  # it would be expanded too
            return folder
        return self.shards[0] if not last else f"{folder}/{{0..{last}}}.tar"

    def classnames(self) -> list[str]:
        """Names of the classes, by index; may have duplicates."""
        return self.lines(CLASSNAMES, "one class name per line")

    def templates(self) -> list[str]:
        """Prompt templates with `{c}`."""
        found = self.lines(TEMPLATES, "one prompt per line, {c} in place of the class")
        for template in found:
            if "{c}" not in template and "{}" not in template:
                raise SourceError(
                    f"{self.uri}/{TEMPLATES}: {template!r} has no {{c}} in place of the class: add it"
                )
        return [template.replace("{}", "{c}") for template in found]

    def samples(self, extensions: Collection[str]) -> Iterator[Sample]:
        """Iterate over the images of the split with their texts; order and ids are those of the items.

        Raises:
            SourceError: a shard is damaged, or a text has no image.
        """
        for shard in self.shards:
            file = _file(shard)
            with file.open() as stream:
                for group in groups(stream, file, extensions):
                    if group.texts and not group.images:
                        raise SourceError(
                            f"{shard}: {group.key}: has .{min(group.texts)}, but no image that ends in "
                            f"{' '.join(IMAGE_EXTENSIONS)}; add one, or remove the text"
                        )
                    for image, _ in group.images:
                        item_id = group.key if len(group.images) == 1 else image.name
                        yield Sample(item_id, f"{shard}: {group.key}", group.texts)

    def lines(self, name: str, content: str) -> list[str]:
        """The lines of a file of the root, without surrounding blanks; `content` describes it in errors.

        Raises:
            SourceError: it does not exist, or a line is empty: the number of a line may have a meaning.
        """
        uri = f"{self.uri}/{name}"
        text = _text(uri)
        if text is None:
            raise SourceError(f"{uri}: does not exist; write it: {content}")
        lines = [line.strip() for line in text.splitlines()]
        if not any(lines):
            raise SourceError(f"{uri}: is empty; write {content}")
        if "" in lines:
            raise SourceError(f"{uri}, line {lines.index('') + 1}: is empty; remove it, or write {content}")
        return lines

    def description(self) -> dict[str, str | None]:
        """Texts of the files beside the splits, by name."""
        return {
            name: _text(f"{self.uri}/{name}") for name in (CLASSNAMES, TEMPLATES, DATASET_TYPE, INSTANCES)
        }


def read_root(text: str, split: str) -> Root:
    """Read the description of a split; the images are not read.

    Args:
        text: a folder, or `s3://BUCKET/PREFIX`.
        split: name of the folder with the shards, such as `test`.

    Raises:
        SourceError: it is not such a root, or has no such split; the message names those there.
        SourceUnavailableError: it is in S3, and the store is unavailable.
    """
    uri = root_uri(text)
    if uri.startswith(SCHEME) and any(character in f"{uri}{split}" for character in "*?[{"):
        raise SourceError(f"{uri}: the characters * ? [ and {{ are read as a pattern in S3: rename the root")
    if not uri.startswith(SCHEME) and not Path(uri).is_dir():
        raise SourceError(f"{uri}: no such folder: give a webdataset root, or an output and `truth_column=`")
    if (Path(uri) / objects.INTERNAL).is_dir():
        raise SourceError(f"{uri}: is the output of a job, not a webdataset root: add `truth_column=`")
    shards = _shards(uri, split)
    if "{" in uri or "{" in split:
        shards = tuple(sorted(shards))  # as a folder is read, see `Root.source`
    states = {shard: " ".join(_file(shard).state().values()) for shard in shards}
    return Root(uri, split, _kind(uri), shards, states)


def root_uri(text: str) -> str:
    """Absolute path of a folder, or the URI of an S3 prefix, without a slash at the end."""
    text = with_s3_scheme(text)
    if text.startswith(SCHEME):
        return text.rstrip("/")
    return os.path.abspath(Path(text).expanduser())  # noqa: PTH100 - pathlib keeps `..`


def class_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Labels of the classes of a root, by index; a name that occurs again has its index added."""
    seen, found = set[str](), []
    for index, name in enumerate(names):
        found.append(f"{name} ({index})" if name in seen else name)
        seen.add(found[-1])
    return tuple(found)


def has_split(uri: str, split: str) -> bool:
    """Whether a folder or S3 prefix is a webdataset root with this split."""
    return _exists(f"{uri}/{split}/{SHARDS}")


def _kind(uri: str) -> DatasetType:
    text = _text(f"{uri}/{DATASET_TYPE}")
    kind = (text or DatasetType.CLASSIFICATION).strip().lower()
    if kind not in list(DatasetType):
        raise SourceError(f"{uri}/{DATASET_TYPE}: {kind!r} is not one of {', '.join(DatasetType)}")
    return DatasetType(kind)


def _shards(uri: str, split: str) -> tuple[str, ...]:
    counted = f"{uri}/{split}/{SHARDS}"
    text = _text(counted)
    if text is None:
        splits = _splits(uri)
        found = f"its splits are {', '.join(splits)}" if splits else f"there is no split with {SHARDS}"
        raise SourceError(f"{uri}: no split {split!r}: {counted} does not exist; {found}")
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise SourceError(f"{counted}: {text.strip()[:40]!r} is not the number of shards")
    shards = [f"{uri}/{split}/{number}.tar" for number in range(count + 1)]
    missing = [shard for shard in shards[:-1] if not _exists(shard)]
    if missing:
        raise SourceError(f"{missing[0]}: does not exist, but {counted} says {count}")
    if _exists(shards[-1]):
        raise SourceError(f"{shards[-1]}: is there too, but {counted} says {count}")
    return tuple(shards[:-1])


def _splits(uri: str) -> list[str]:
    if not uri.startswith(SCHEME):
        return sorted(path.parent.name for path in Path(uri).glob(f"*/{SHARDS}"))
    bucket, key = split_s3_uri(uri)
    prefix = f"{key}/" if key else ""
    names = (one.key[len(prefix) :] for one in islice(listing(default_client(), bucket, prefix), _LISTED))
    return sorted({name.partition("/")[0] for name in names if name.partition("/")[2] == SHARDS})


def _file(uri: str) -> SourceFile:
    if not uri.startswith(SCHEME):
        return LocalFile(Path(uri))
    return ObjectFile(default_client(), *split_s3_uri(uri))


def _exists(uri: str) -> bool:
    return Path(uri).exists() if not uri.startswith(SCHEME) else _object(uri) is not None


def _text(uri: str) -> str | None:
    """Text of a small file; None if it does not exist."""
    try:
        if uri.startswith(SCHEME):
            file = _object(uri)
            data = None if file is None else file.read()
        else:
            data = Path(uri).read_bytes()
        return None if data is None else data.decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"{uri}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise SourceError(f"{uri}: not UTF-8 text") from None


def _object(uri: str) -> S3File | None:
    bucket, key = split_s3_uri(uri)
    try:
        return S3File(default_client(), bucket, key, away=SourceUnavailableError, lasting=SourceError)
    except FileNotFoundError:
        return None
