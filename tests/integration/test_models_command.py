"""`clipfleet-worker models`: the real command against a hub on this machine, and against none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipfleet.contract.jobs import DEFAULT_MODEL
from tests.support.demo_model import DEMO, WEIGHTS
from tests.support.hub_site import HubSite

pytestmark = pytest.mark.long

_DATACOMP = "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"
_REPOSITORIES: dict[str, dict[str, bytes]] = {
    _DATACOMP: {WEIGHTS: b"weights"},
    "timm/ViT-B-16-SigLIP": {
        "open_clip_pytorch_model.bin": b"weights of torch",
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
        "README.md": b"not needed",
    },
    "org/demo": {path.name: path.read_bytes() for path in DEMO.glob("open_clip_*")},
    "org/clip": {
        "config.json": b'{"model_type": "clip"}',
        "model.safetensors": b"weights",
        "preprocessor_config.json": b'{"size": 224}',
    },
}


@pytest.fixture(scope="module")
def hub() -> Iterator[HubSite]:
    with HubSite(_REPOSITORIES) as site:
        yield site


class Models:
    """The command with a cache of its own."""

    def __init__(self, home: Path, endpoint: str) -> None:
        self._settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint}

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("CLIPFLEET_", "HF_"))
        }
        return subprocess.run(
            [sys.executable, "-m", "clipfleet_worker", "models", *arguments],
            env=clean | self._settings | variables, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def json(self, *arguments: str, **variables: str) -> Any:
        result = self(*arguments, "--json", **variables)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)["models"]


def test_what_was_pulled_is_listed_and_served_without_the_network(hub: HubSite, tmp_path: Path) -> None:
    models = Models(tmp_path, hub.url)
    names = [DEFAULT_MODEL, "ViT-B-16-SigLIP:webli", "hf-hub:org/demo", "hf-hub:org/clip"]

    pulled = models.json("pull", *names)

    assert [model["model"] for model in pulled] == names
    sizes = [7, 16, len(_REPOSITORIES["org/demo"][WEIGHTS]), 7]
    assert [model["size_bytes"] for model in pulled] == sizes
    assert all(Path(model["folder"]).is_relative_to(tmp_path) for model in pulled)
    assert {path.name for path in Path(pulled[1]["folder"]).iterdir()} == {
        "open_clip_pytorch_model.bin", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert (Path(pulled[3]["folder"]) / "preprocessor_config.json").is_file()

    asked, served = len(hub.requests), ["demo", DEFAULT_MODEL, "ViT-L-14:openai"]
    listed = models.json("list", CLIPFLEET_MODELS=",".join(served))
    assert models.json("pull", *names) == pulled
    assert len(hub.requests) == asked
    assert [model["model"] for model in listed if model["served"]] == served
    found = {model["model"]: model for model in listed}
    assert found["ViT-L-14:openai"]["folder"] is None
    for model in pulled:
        for fact in ("folder", "size_bytes"):
            assert found[model["model"]][fact] == model[fact]


def test_a_table_for_people(tmp_path: Path) -> None:
    models = Models(tmp_path, "http://127.0.0.1:1")

    result = models("list", "--all", CLIPFLEET_MODELS="demo,ViT-B-32:no-such-weights")
    lines = result.stdout.splitlines()

    assert result.returncode == 0, result.stderr
    assert lines[0].split() == ["model", "served", "size", "where"]
    assert lines[2].split() == ["demo", "yes", "16", "MB", str(DEMO)]
    assert "open_clip knows no weights 'no-such-weights' of ViT-B-32" in lines[3]
    (large,) = [line.split() for line in lines if line.startswith("ViT-L-14:openai ")]
    assert large == ["ViT-L-14:openai", "not", "on", "this", "machine"]


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("hf-hub:org/none", 1, "no such repository"),
        ("hf-hub:timm/ViT-B-16-SigLIP", 1, "has no open_clip_config.json or config.json"),
        ("ViT-B-23:openai", 2, "do you mean ViT-B-32"),
    ],
)
def test_what_cannot_be_pulled_is_told_in_one_line(
    hub: HubSite, tmp_path: Path, name: str, code: int, words: str
) -> None:
    result = Models(tmp_path, hub.url)("pull", name)

    assert result.returncode == code
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("trouble", ["refused", "silent"])
def test_without_the_network_it_gives_up_quickly(tmp_path: Path, trouble: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if trouble == "silent" else 1
        result = Models(tmp_path, f"http://127.0.0.1:{port}")("pull", "hf-hub:org/away")

    assert result.returncode == 1
    (line,) = result.stderr.splitlines()  # the hub's own client tells of each try, for minutes
    for word in ("hf-hub:org/away is not on this machine", "models pull", "./FOLDER", "demo"):
        assert word in line
