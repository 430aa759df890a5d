"""Programs for data read the folder `data` of an output: each row once, vectors unchanged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from clipfleet.client import JobHandle, JobOptions
from clipfleet.contract.columns import VectorType
from clipfleet.exports import Layout, export
from clipfleet.outputs import open_output
from clipfleet.results.part_rows import PartRows
from clipfleet.results.rows import rows
from tests.conftest import service_is_missing
from tests.peers.listed_images import write_list
from tests.peers.read_output import PEERS
from tests.support.cluster import Cluster
from tests.support.documents import ROOT, table

pytestmark = pytest.mark.peers

ITEMS, CHUNK = 40, 8
BAD = {
    *range(8),
    13,
    30,
    31,
    ITEMS - 1,
}  # the whole first chunk, from which readers infer types; the last item
LABELS = ["red", "green", "blue"]
WITHOUT_FLOAT16 = ("classify", "embed float32")
WITH_VECTORS = ("classify with vectors", "embed", "embed float32")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "SPARK_LOCAL_IP": "127.0.0.1",
    "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",  # for a short run on few cores
}
SPECIAL = {"Spark": WITHOUT_FLOAT16, "faiss": WITH_VECTORS, "usearch": WITH_VECTORS}


@dataclass(frozen=True)
class Output:
    """An output, its export, and what clipfleet reads in it."""

    folder: Path
    export: Path
    labels: Mapping[int, str]
    vectors: Mapping[int, list[float]]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Output]]:
    folder = tmp_path_factory.mktemp("readers")
    with Cluster(folder) as cluster:
        cluster.start_worker()
        write_list(folder, ITEMS, BAD, "shelf", lambda number: number % 3)
        yield {name: _written(job, folder) for name, job in _submitted(cluster).items()}


def _submitted(cluster: Cluster) -> dict[str, JobHandle]:
    source = str(cluster.folder / "list.csv")

    def options(
        name: str, vector_type: VectorType = VectorType.FLOAT16, *, store: bool = False
    ) -> JobOptions:
        output = str(cluster.folder / name)
        return JobOptions(
            model="demo", output=output, chunk_size=CHUNK, vector_type=vector_type, store_embeddings=store
        )

    client = cluster.client
    return {
        "classify": client.classify(source, LABELS, options=options("classify")),
        "classify with vectors": client.classify(source, LABELS, options=options("stored", store=True)),
        "embed": client.embed(source, options=options("embed")),
        "embed float32": client.embed(source, options=options("embed32", VectorType.FLOAT32)),
    }


def _written(job: JobHandle, folder: Path) -> Output:
    status = job.wait(120)
    assert (status.ok, status.failed) == (ITEMS - len(BAD), len(BAD))
    export = folder / f"export-{job.job_id}"
    job.export(Layout.HUGGING_FACE, export)
    labels = {row["item_index"]: row["label"] for row in job.results() if row["label"] is not None}
    items, matrix = job.vectors()
    vectors = dict(zip(items.tolist(), matrix.astype(np.float64).tolist(), strict=True))
    return Output(Path(job.output), export, labels, vectors)


@pytest.mark.parametrize("peer", PEERS)
def test_every_row_is_there_once_with_its_vector(
    python_of: Callable[[str], Path], outputs: Mapping[str, Output], tmp_path: Path, peer: str
) -> None:
    if peer == "Spark" and shutil.which("java") is None:
        service_is_missing("Spark needs java: apt-get install default-jre-headless")
    names = SPECIAL.get(peer, tuple(outputs))
    folders = [outputs[name].export if peer.endswith("export") else outputs[name].folder for name in names]

    script = Path(__file__).with_name("read_output.py")
    shown = subprocess.run(
        [python_of("READERS_PYTHON"), script, peer, *folders],
        env=os.environ | ENVIRONMENT | {"HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert shown.returncode == 0, shown.stderr
    for name, line in zip(names, shown.stdout.splitlines(), strict=True):
        found, expected = json.loads(line), outputs[name]
        assert sorted(found["items"]) == list(range(ITEMS)), name
        assert {int(item): label for item, label in found["labels"].items()} == expected.labels, name
        assert {int(item): vector for item, vector in found["vectors"].items()} == expected.vectors, name


@pytest.mark.parametrize("layout", [Layout.WEBDATASET, Layout.HUGGING_FACE_IMAGES])
def test_layouts_of_images_hold_each_with_its_row(
    python_of: Callable[[str], Path], outputs: Mapping[str, Output], tmp_path: Path, layout: Layout
) -> None:
    reader = PartRows(open_output(str(outputs["classify"].folder)))
    export(reader, layout, tmp_path / "to")

    script = Path(__file__).with_name("read_images.py")
    shown = subprocess.run(
        [python_of("READERS_PYTHON"), script, layout, tmp_path / "to"],
        env=os.environ | ENVIRONMENT | {"HF_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip

    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout.splitlines()[-1]) == {
        row["item_id"]: [[row["width"], row["height"]], row["label"], LABELS.index(row["label"])]
        for row in rows(reader)
        if row["status"] == "ok"
    }


def test_the_page_shows_what_is_run_here() -> None:
    run = Path(__file__).with_name("read_output.py").read_text()
    for program, shown in table(ROOT / "docs" / "results.md", "program", "rows of `OUTPUT`"):
        call = shown.split("`")[1].partition("(")[0].rpartition(".")[2]
        assert f".{call}(" in run, program
