"""Where a model's files are found: in folders and in the hub's cache, never by a question to the network."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from clipfleet.contract.jobs import DEFAULT_MODEL, ErrorCode, Precision
from clipfleet_worker.failures import ItemFailure, ModelUnavailableError
from clipfleet_worker.models.files import Layout, fetch_files, find_configuration, find_files
from clipfleet_worker.models.loader import load_model
from tests.support.demo_model import CONFIG, DEMO, WEIGHTS, altered_demo
from tests.support.failing import failing
from tests.support.hub_cache import HubCache

CLIP = b'{"model_type": "clip"}'
DATACOMP = "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    cache = HubCache(tmp_path / "hf")
    cache.use(monkeypatch)
    return cache


class TestTheHubsCache:
    def test_weights_that_open_clip_knows_by_name(self, hub: HubCache) -> None:
        folder = hub.add(DATACOMP, {WEIGHTS: b"12345"})

        found = find_files(DEFAULT_MODEL)

        assert (found.layout, found.weights) == (Layout.NAMED, (folder / WEIGHTS,))
        assert (found.size_bytes, found.configuration["embed_dim"], found.tokenizer) == (5, 512, None)
        assert fetch_files(DEFAULT_MODEL) == found

    def test_an_older_kind_of_file_serves_if_there_is_no_better_one(self, hub: HubCache) -> None:
        folder = hub.add(DATACOMP, {"open_clip_pytorch_model.bin": b"1"})
        assert find_files(DEFAULT_MODEL).weights == (folder / "open_clip_pytorch_model.bin",)

    def test_preprocessing_and_tokenizer_are_those_of_the_weights(self, hub: HubCache) -> None:
        hub.add("timm/ViT-B-16-SigLIP", {WEIGHTS: b"1"})
        assert find_files("ViT-B-16-SigLIP:webli") is None

        hub.add("timm/ViT-B-16-SigLIP", {"tokenizer.json": b"{}"})
        found = find_files("ViT-B-16-SigLIP:webli")
        assert found.preprocessing["resize_mode"] == "squash"
        assert found.preprocessing["mean"] == (0.5, 0.5, 0.5)
        assert found.tokenizer == found.folder

    def test_a_repository_in_open_clips_layout(self, hub: HubCache) -> None:
        folder = hub.add("org/demo", {name: DEMO / name for name in (CONFIG, WEIGHTS)})
        found = find_files("hf-hub:org/demo")
        assert (found.layout, found.folder) == (Layout.OPEN_CLIP, folder)
        assert find_configuration("hf-hub:org/demo") == found.configuration

    def test_a_repository_in_the_layout_of_transformers(self, hub: HubCache) -> None:
        folder = hub.add("org/clip", {"config.json": CLIP, "model.safetensors": b"1"})
        found = find_files("hf-hub:org/clip")
        assert (found.layout, found.weights) == (Layout.TRANSFORMERS, (folder / "model.safetensors",))

    def test_one_in_both_layouts_is_read_by_open_clips(self, hub: HubCache) -> None:
        ours = {CONFIG: DEMO / CONFIG, WEIGHTS: b"1"}
        folder = hub.add("org/both", {"config.json": CLIP, "model.safetensors": b"1", **ours})
        found = find_files("hf-hub:org/both")
        assert (found.layout, found.weights[0]) == (Layout.OPEN_CLIP, folder / WEIGHTS)

    def test_weights_in_several_files_count_once_all_are_there(self, hub: HubCache) -> None:
        first, second = "model-1.safetensors", "model-2.safetensors"
        index = json.dumps({"weight_map": {"a": first, "b": second, "c": first}}).encode()
        hub.add("org/large", {"config.json": CLIP, "model.safetensors.index.json": index, first: b"12"})
        assert find_files("hf-hub:org/large") is None

        folder = hub.add("org/large", {second: b"345"})
        found = find_files("hf-hub:org/large")
        assert (found.weights, found.size_bytes) == ((folder / first, folder / second), 5)

    @pytest.mark.parametrize("name", [DEFAULT_MODEL, "hf-hub:org/none", "ViT-B-16-SigLIP:webli"])
    def test_what_is_not_there_is_told_in_one_line_with_the_ways_out(self, hub: HubCache, name: str) -> None:
        assert find_files(name) is None
        with pytest.raises(ModelUnavailableError) as caught:
            fetch_files(name)
        message = str(caught.value)
        for word in ("HF_HUB_OFFLINE", f"clipfleet-worker models pull {name}", "./FOLDER", "demo"):
            assert word in message
        assert "\n" not in message

    @pytest.mark.parametrize("endpoint", ["nonsense", f"nonsense {'of many words ' * 20}"])
    def test_of_an_address_that_is_none_a_row_does_not_cut_off_the_ways_out(
        self, hub: HubCache, monkeypatch: pytest.MonkeyPatch, endpoint: str
    ) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        name = "hf-hub:laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K"
        with pytest.raises(ModelUnavailableError, match="unknown url type: 'nonsense") as caught:
            fetch_files(name)
        detail = ItemFailure(ErrorCode.MODEL_UNAVAILABLE, str(caught.value)).error.detail
        for word in (f"clipfleet-worker models pull {name}", "./FOLDER", "`demo`"):
            assert word in detail


class TestFolders:
    def test_open_clips_layout(self) -> None:
        found = find_files(f"local-dir:{DEMO}")
        assert found == find_files("demo")
        assert (found.layout, found.folder) == (Layout.OPEN_CLIP, DEMO)

    def test_a_file_with_weights_for_an_architecture(self, tmp_path: Path) -> None:
        weights = tmp_path / "mine.safetensors"
        with pytest.raises(ModelUnavailableError, match=f"no file {weights}"):
            find_files(f"ViT-B-32:{weights}")
        weights.write_bytes(b"1")
        found = find_files(f"ViT-B-32:{weights}")
        assert (found.layout, found.weights) == (Layout.NAMED, (weights,))

    def test_its_own_tokenizer_goes_before_the_hubs(self, tmp_path: Path, hub: HubCache) -> None:
        def alter(configuration: Any, _: object) -> None:
            configuration["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/words"

        name = altered_demo(tmp_path, alter)
        assert find_files(name) is None

        of_the_hub = hub.add("org/words", {"tokenizer.json": b"{}"})
        assert find_files(name).tokenizer == of_the_hub

        (tmp_path / "tokenizer.json").write_text("{}")
        assert find_files(name).tokenizer == tmp_path

    def test_a_folder_of_somebody_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        error = PermissionError(errno.EACCES, "Permission denied", f"{tmp_path}/{CONFIG}")
        monkeypatch.setattr(Path, "is_file", failing(error))
        with pytest.raises(ModelUnavailableError, match=rf"^{tmp_path}/\S+: user \d+ may not read it$"):
            find_files(f"local-dir:{tmp_path}")

    @pytest.mark.parametrize(
        ("contents", "words"),
        [
            (None, "there is no folder"),
            ({}, "holds no model: neither open_clip_config.json nor config.json"),
            ({CONFIG: "{"}, "cannot be read"),
            ({CONFIG: "[]"}, "no JSON object"),
            ({CONFIG: '{"model_cfg": {}}'}, "no model_cfg of open_clip"),
            ({CONFIG: '{"model_cfg": {"embed_dim": 4, "vision_cfg": {}}}'}, "no model_cfg of open_clip"),
            ({CONFIG: '{"model_cfg": {"embed_dim": 4, "vision_cfg": {}, "text_cfg": {}}}'},
             "holds no weights: put open_clip_model.safetensors there"),
            ({"config.json": '{"model_type": "clip"}'}, "holds no weights: put model.safetensors there"),
            ({"config.json": '{"model_type": "clip", "text_config": 3}'}, "cannot be used"),
            ({"config.json": '{"model_type": "clip", "vision_config": {"num_attention_heads": 0}}'},
             "cannot be used"),
            ({"config.json": '{"model_type": "clip"}',
              "model.safetensors.index.json": '{"weight_map": {"a": "../../1.safetensors"}}'},
             "lacks 1.safetensors"),
        ],
        ids=str,
    )  # fmt: skip
    def test_what_is_wrong_with_a_folder_is_told(
        self, contents: dict[str, str] | None, words: str, tmp_path: Path
    ) -> None:
        folder = tmp_path / "model"
        if contents is not None:
            folder.mkdir()
            for name, text in contents.items():
                (folder / name).write_text(text)

        for ask in (find_files, fetch_files):
            with pytest.raises(ModelUnavailableError, match=words) as caught:
                ask(f"local-dir:{folder}")
            assert str(folder) in str(caught.value)


def test_a_model_is_the_same_wherever_it_lies(hub: HubCache, tmp_path: Path) -> None:
    hub.add("org/demo", {name: DEMO / name for name in (CONFIG, WEIGHTS)})
    shutil.copytree(DEMO, tmp_path / "copy")

    names = ("demo", "hf-hub:org/demo", f"local-dir:{DEMO}", f"local-dir:{tmp_path / 'copy'}")
    assert len({load_model(name, Precision.FP32, "cpu").fingerprint for name in names}) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT-B-23:openai", "no architecture 'ViT-B-23' .*ViT-B-32"),
        ("ViT-B-32:datacomp_xl", "no weights 'datacomp_xl' of ViT-B-32 .*datacomp_xl_s13b_b90k"),
        ("zzz:openai", "no architecture 'zzz'; `clipfleet-worker models list --all`"),
    ],
)
def test_a_name_that_open_clip_does_not_know_meets_those_it_knows(name: str, words: str) -> None:
    for ask in (find_files, fetch_files):
        with pytest.raises(ModelUnavailableError, match=words):
            ask(name)
