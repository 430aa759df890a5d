"""Names of models: every short way leads to one full name, whatever the current folder of who compares."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfleet.contract.jobs import DEFAULT_MODEL
from clipfleet.contract.model_names import normalise_model


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("demo", "demo"),
        (" demo ", "demo"),
        ("ViT-B-32", DEFAULT_MODEL),
        (DEFAULT_MODEL, DEFAULT_MODEL),
        ("ViT-L-14:openai", "ViT-L-14:openai"),
        ("hf-hub:org/name", "hf-hub:org/name"),
        ("local-dir:/models/a:b", "local-dir:/models/a:b"),
        ("./mine", "local-dir:{here}/mine"),
        ("mine/", "local-dir:{here}/mine"),
        ("models/mine", "local-dir:{here}/models/mine"),
        ("../mine", "local-dir:{above}/mine"),
        (".", "local-dir:{here}"),
        ("/models/a:b", "local-dir:/models/a:b"),
        ("~/mine", "local-dir:{home}/mine"),
        ("local-dir:mine", "local-dir:{here}/mine"),
        ("local-dir:./mine", "local-dir:{here}/mine"),
        ("ViT-B-32:./weights.safetensors", "ViT-B-32:{here}/weights.safetensors"),
        ("ViT-B-32:/weights.pt", "ViT-B-32:/weights.pt"),
    ],
)
def test_a_full_name_whose_paths_count_from_the_current_folder(
    name: str, meaning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    full = meaning.format(here=tmp_path, above=tmp_path.parent, home="/home/somebody")

    assert normalise_model(name) == full
    assert normalise_model(full) == full


@pytest.mark.parametrize("name", ["", "ViT-L-14", "ViT-L-14:", ":openai", "local-dir:", ":", "mine"])
def test_a_name_without_weights_is_refused_with_the_ways_to_say_it(name: str) -> None:
    with pytest.raises(ValueError, match="does not name its weights") as caught:
        normalise_model(name)
    for way in (DEFAULT_MODEL, "hf-hub:", "local-dir:", "./FOLDER", "demo"):
        assert way in str(caught.value)


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:name", "hf-hub:org/", "hf-hub:a/b/c", "hf-hub:a/b c"])
def test_what_is_no_repository_of_the_hub_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a repository of the hub"):
        normalise_model(name)


def test_a_comma_would_end_the_name_in_a_list() -> None:
    with pytest.raises(ValueError, match="comma"):
        normalise_model("./a,b")
