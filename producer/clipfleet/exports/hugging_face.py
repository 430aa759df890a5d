"""A data set that `datasets.load_dataset(FOLDER)` opens, and that a hub shows with its card.

    data/train-00000.parquet   all rows, failed ones too; a new file after so many rows or bytes
    README.md                  the card: features, counts, columns, model

The card declares the features: a column with labels of one set is a `ClassLabel`. In the files it is text,
for other readers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from clipfleet.contract.columns import (
    ACCEPTED_COLUMN,
    LABEL_COLUMNS,
    accepted_column,
    head_scores_column,
    label_columns,
)
from clipfleet.contract.heads import HeadKind, JobHead
from clipfleet.contract.jobs import Job, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.parts import count_rows
from clipfleet.exports.images import IMAGE, LACK, WithImages, no_image
from clipfleet.exports.new_folder import ExportCounts
from clipfleet.marking.correcting import is_of_marks
from clipfleet.parts.json_rows import as_json, json_type
from clipfleet.results.formats import row_groups
from clipfleet.results.rows import RowReader
from clipfleet.wording import counted

_ROWS_PER_FILE = 500_000  # 0.5 GB of float16 vectors of length 512
_BYTES_PER_FILE = 1 << 29  # of columns in memory, with images
_CATEGORIES = {
    Task.CLASSIFY: "zero-shot-image-classification",
    Task.EMBED: "image-feature-extraction",
    Task.EMBED_TEXT: "feature-extraction",
}
_MEANINGS = {
    "item_index": "position in the source, unique",
    "item_id": "name of the item, need not be unique",
    "uri": "where the item was read",
    "status": "`ok` or `failed`",
    "error_code": "why the row failed",
    "error_detail": "the same for people",
    "label": "the best label; null if none reaches its threshold",
    "score": "its score, or the best one: of a softmax over the labels, or of a sigmoid over a background",
    "labels": "the best labels, descending",
    "scores": "their scores",
    "embedding": "L2-normalised vector",
    "width": "of the original image",
    "height": "of the original image",
    "content_hash": "sha256 of the bytes",
    "model_fingerprint": "hash of model, weights, preprocessing and precision",
}
_OF_IMAGES = "the file that the job has seen; null: not found where it was"
_OF_MARKS = "people marked the image: true if the model had other labels; null: not marked"
_OF_DECISIONS = {
    "decision": "`flag`, `review`, `allow`, or `undecided` where the item could not be judged",
    "decision_id": "names the decision",
    "decided_at": "when, in UTC",
    "decision_reasons": "the conditions that counted, with scores and thresholds",
}
_ACCEPTED = "all labels that reach their thresholds, best first"
# In the order of `JobHead.columns`.
_OF_HEADS = {
    HeadKind.CLASSIFY: ("the best label", "its score"),
    HeadKind.MULTILABEL: (_MEANINGS["label"], "its score, or the best one", _ACCEPTED),
    HeadKind.REGRESS: ("the label if its number reaches the threshold, else null", "the number"),
}


def export_hugging_face(reader: RowReader, folder: Path) -> ExportCounts:
    """Write the data files and the card into a folder."""
    stored = reader.read()
    return ExportCounts(_export(reader, stored.schema, stored.batches, folder), left_out=0)


def export_hugging_face_images(reader: RowReader, folder: Path) -> ExportCounts:
    """Write the same with the images in a column `image`, see `WithImages`.

    Raises:
        UsageError: no row has an image.
        SourceUnavailableError: see `image_of`.
    """
    images = WithImages(reader.read())
    rows = _export(reader, images.schema, iter(images), folder)
    if not images.found:
        raise no_image(reader)
    lacking = rows - images.found
    notes = (f"without {LACK}: {counted(lacking, 'row')}",) if lacking else ()
    return ExportCounts(rows, left_out=0, notes=notes)


def _export(reader: RowReader, schema: pa.Schema, batches: Iterator[pa.RecordBatch], folder: Path) -> int:
    """Write rows of a schema; return their number."""
    job = reader.job()
    left_out = {"embedding"} if job is not None and not job.keeps_embeddings else set()
    schema = pa.schema([_storable(one) for one in schema if one.name not in left_out])
    (folder / "data").mkdir()
    tally = _Tally()
    _write_files(folder / "data", schema, row_groups(_counted(batches, schema, tally)))
    card = _front_matter(schema, job, tally) + _body(schema, job, tally)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return tally.rows


@dataclass(slots=True)
class _Tally:
    """What the card says of the rows."""

    rows: int = 0
    codes: Counter[str] = field(default_factory=Counter)  # of failed rows
    fingerprints: set[str] = field(default_factory=set)


def _counted(batches: Iterator[pa.RecordBatch], schema: pa.Schema, tally: _Tally) -> Iterator[pa.RecordBatch]:
    """Count rows, and convert them to the schema."""
    for batch in batches:
        tally.rows += batch.num_rows
        tally.codes.update(count_rows(pa.Table.from_batches([batch])).codes)
        tally.fingerprints.update(filter(None, batch["model_fingerprint"].unique().to_pylist()))
        columns = [_as(batch.select([one.name]), one) for one in schema]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _as(column: pa.RecordBatch, wanted: pa.Field[Any]) -> pa.Array:
    return (column if column.schema.field(0).type.equals(wanted.type) else as_json(column)).column(0)


def _write_files(folder: Path, schema: pa.Schema, groups: Iterator[pa.Table]) -> None:
    rows = size_bytes = number = 0
    with ExitStack() as stack:
        writer = None
        for group in groups:
            if writer is None or rows >= _ROWS_PER_FILE or size_bytes >= _BYTES_PER_FILE:
                stack.close()
                path = folder / f"train-{number:05d}.parquet"
                writer = stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
                rows, size_bytes, number = 0, 0, number + 1
            writer.write_table(group)
            rows, size_bytes = rows + group.num_rows, size_bytes + group.nbytes


# --- Features ---


def _storable(column: pa.Field[Any]) -> pa.Field[Any]:
    """The column, as text if `datasets` has no feature for its type; without the source's metadata."""
    kind = column.type if _feature(column.type) is not None else json_type(column.type)
    return pa.field(column.name, kind)


def _feature(kind: pa.DataType) -> dict[str, Any] | None:
    """Feature of a type, as the card spells it; None if there is none."""
    if kind.equals(IMAGE.type):
        return {"dtype": "image"}
    if pa.types.is_struct(kind):
        inner = [_feature(child.type) for child in kind]
        named = [{"name": child.name, **one} for child, one in zip(kind, inner, strict=True) if one]
        return {"struct": named} if len(named) == kind.num_fields else None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        one = _feature(kind.value_type)
        length = {"length": kind.list_size} if pa.types.is_fixed_size_list(kind) else {}
        name = "large_list" if pa.types.is_large_list(kind) else "list"
        return one and {name: one.get("struct", one.get("dtype", one)), **length}
    name = _NAMES.get(str(kind), str(kind))
    is_known = name in _NAMES.values() or pa.types.is_timestamp(kind) or pa.types.is_decimal128(kind)
    return {"dtype": name} if is_known else None


_NAMES = {
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{"halffloat": "float16", "float": "float32", "double": "float64", "date32[day]": "date32"},
    **{name: name for name in ("null", "bool", "string", "large_string", "binary", "large_binary")},
}  # by Arrow's name of the type


def _class_labels(job: Job | None) -> Mapping[str, Sequence[str]]:
    """Labels of the columns that hold those of one set or head, by column; only workers know a preset's."""
    if job is None:
        return {}
    of_heads = {name: one.head.labels for one in job.heads for name in (one.columns[0], *one.columns[2:])}
    if job.label_set_column is not None or not job.label_sets:
        return of_heads
    by_columns: dict[tuple[str, ...], LabelSet] = {(*LABEL_COLUMNS, ACCEPTED_COLUMN): job.label_sets[0]}
    by_columns |= {(*label_columns(one.name), accepted_column(one.name)): one for one in job.named_label_sets}
    of_sets = {
        name: one.labels
        for (label, _, labels, _, accepted), one in by_columns.items()
        if one.labels
        for name in (label, labels, *([accepted] if accepted in job.accepted_columns else []))
    }
    return of_sets | of_heads


def _features(schema: pa.Schema, job: Job | None) -> list[dict[str, Any]]:
    labels = _class_labels(job)
    found = []
    for column in schema:
        feature = _feature(column.type) or {}
        if column.name in labels:
            names = {str(number): label for number, label in enumerate(labels[column.name])}
            feature = {"list" if "list" in feature else "dtype": {"class_label": {"names": names}}}
        found.append({"name": column.name, **feature})
    return found


# --- Card ---


def _front_matter(schema: pa.Schema, job: Job | None, tally: _Tally) -> str:
    known = {
        "license": "unknown",
        **({"task_categories": [_category(job)]} if job else {}),
        "tags": ["clipfleet", "clip"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
        "dataset_info": {
            "features": _features(schema, job),
            "splits": [{"name": "train", "num_examples": tally.rows}],
        },
    }
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---\n"


def _category(job: Job) -> str:
    has_heads_only = job.task is Task.CLASSIFY and not job.label_sets
    return "image-classification" if has_heads_only else _CATEGORIES[job.task]


def _body(schema: pa.Schema, job: Job | None, tally: _Tally) -> str:
    failed = tally.codes.total()
    has_labels = job is None or job.task is Task.CLASSIFY or bool(job.heads)
    codes = ", ".join(f"{count:,} `{code}`" for code, count in tally.codes.most_common())
    facts = {
        "rows": f"{tally.rows:,}",
        "ok": f"{tally.rows - failed:,}",
        "failed": f"{failed:,}" + (f": {codes}" if codes else ""),
        "model": _code(job.model) if job else "unknown",
        "model fingerprint": ", ".join(map(_code, sorted(tally.fingerprints))) or "none",
        "task": f"`{job.task}`" if job else "unknown",
        **({"heads": ", ".join(map(_head_words, job.heads))} if job and job.heads else {}),
        "source": _code(job.source.uri) if job else "unknown",
        "job": f"`{job.job_id}`, {job.created_at:%Y-%m-%d}" if job else "unknown",
    }
    lines = [
        "",
        f"# {_title(job)}",
        "",
        "Exported by clipfleet. Failed rows are kept, with `status` `failed` and the reason in `error_code`.",
        *([_whose_labels(schema, job)] if has_labels else []),
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
        "## Columns",
        "",
        "| column | type | what it holds |",
        "|---|---|---|",
        *(
            f"| {_code(one['name'])} | {_type_name(one)} | {_meaning(one, job)} |"
            for one in _features(schema, job)
        ),
        "",
        "## License",
        "",
        "`unknown`: this export does not know the terms of the source, nor those of the model. State the",
        "license before the data set is shared, and check that `uri` and the source's columns may be public.",
        "",
    ]
    return "\n".join(lines)


def _whose_labels(schema: pa.Schema, job: Job | None) -> str:
    names = [name for name in schema.names if is_of_marks(name, job)]
    if not names:
        return "Labels and scores are predictions of the model, not checked by people."
    return (
        f"Labels and scores are predictions of the model. Where `{names[0]}` is not null, people checked the "
        "image, and its labels are theirs."
    )


def _title(job: Job | None) -> str:
    if job is None:
        return "Results of clipfleet"
    what = "Labels" if job.task is Task.CLASSIFY else "Embeddings"
    return f"{what} of {_code(Path(job.source.uri).name or job.source.uri)}"


def _head_words(head: JobHead) -> str:
    return f"{_code(head.name)} (sha256 `{head.sha256[:16]}...`, licence {head.head.licence or 'not stated'})"


def _type_name(feature: Any) -> str:
    """Type of a feature in words; it is a name, a mapping, or the list of the fields of a struct."""
    if not isinstance(feature, dict):
        return feature if isinstance(feature, str) else "struct"
    for name in ("list", "large_list"):
        if name in feature:
            length = f"{feature['length']} " if "length" in feature else ""
            return f"list of {length}{_type_name(feature[name])}"
    if "class_label" in feature:
        return "class label"
    return _type_name(feature.get("dtype", "struct"))


def _meaning(feature: Mapping[str, Any], job: Job | None) -> str:
    name = feature["name"]
    if name in _MEANINGS:
        return _MEANINGS[name]
    if (name, feature.get("dtype")) == (IMAGE.name, "image"):
        return _OF_IMAGES
    if is_of_marks(name, job):
        return _OF_MARKS
    if job and name in job.own_columns and name in _OF_DECISIONS:
        return _OF_DECISIONS[name]
    if job and name == ACCEPTED_COLUMN and name in job.accepted_columns:
        return _ACCEPTED
    for one in job.named_label_sets if job else ():
        if name in label_columns(one.name):
            return f"{_MEANINGS[LABEL_COLUMNS[label_columns(one.name).index(name)]]}, of the set `{one.name}`"
        if name == accepted_column(one.name) and one.has_thresholds:
            return f"{_ACCEPTED}, of the set `{one.name}`"
    for head in job.heads if job else ():
        if job and name in job.head_scores_columns and name == head_scores_column(head.name):
            return f"all scores of the head `{head.name}`, in the order of its labels"
        if name in head.columns:
            return f"{_OF_HEADS[head.head.kind][head.columns.index(name)]}, by the head `{head.name}`"
    return "the text" if job and name == job.text_column else "of the source"


def _code(text: str) -> str:
    """Text in backticks, on one line of a table."""
    line = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{line}`"
