"""Names of the formats of `results` and the layouts of `export`. Imports nothing: `--help` needs them."""

from __future__ import annotations

from enum import StrEnum


class ResultFormat(StrEnum):
    """Formats of `clipfleet results`."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


class Layout(StrEnum):
    """Layouts that `clipfleet export` writes."""

    CLIP_RETRIEVAL = "clip-retrieval"
    OPENAI_BATCH = "openai-batch"
    HUGGING_FACE = "huggingface"
    HUGGING_FACE_IMAGES = "huggingface-images"
    LABEL_STUDIO = "label-studio"
    FIFTYONE = "fiftyone"
    WEBDATASET = "webdataset"
    CSV = "csv"
