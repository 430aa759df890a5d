"""Weights of others: the arithmetic is that of the published modules, and what is no such file is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save as save_arrays
from safetensors.torch import save
from torch import nn

from clipfleet.contract.heads import HeadKind
from clipfleet.errors import UsageError
from clipfleet.heads import foreign
from clipfleet.heads.arithmetic import head_scores
from clipfleet.heads.files import HeadFile, read_head
from clipfleet.heads.importing import ImportKind, import_head
from clipfleet.labels.metrics import unit

VECTORS = 200


def with_relu_and_dropout(*widths: int, plain: int) -> list[nn.Module]:
    """Layers of these widths; all but the last `plain` ones are followed by ReLU and dropout."""
    modules: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        modules.append(nn.Linear(inputs, outputs))
        if number < len(widths) - 1 - plain:
            modules += [nn.ReLU(), nn.Dropout(0.2)]
    return modules


class Layers(nn.Module):
    """As the published classes: one `Sequential` that is called `layers`."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(x)
        return found


def aesthetic_v2() -> nn.Module:
    return Layers(
        nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
        nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip


def nsfw_h14() -> nn.Module:
    return Layers(*with_relu_and_dropout(1024, 1024, 2048, 1024, 256, 128, 16, 1, plain=2))


@dataclass(frozen=True)
class Published:
    make: Callable[[], nn.Module]
    kind: ImportKind
    model: str
    dim: int


PUBLISHED = {
    "v1-512": Published(lambda: nn.Linear(512, 1), ImportKind.AESTHETIC_V1, "ViT-B-32:openai", 512),
    "v1-768": Published(lambda: nn.Linear(768, 1), ImportKind.AESTHETIC_V1, "ViT-L-14:openai", 768),
    "v2": Published(aesthetic_v2, ImportKind.AESTHETIC_V2, "ViT-L-14:openai", 768),
    "h14": Published(nsfw_h14, ImportKind.NSFW_H14, "ViT-H-14:laion2b_s32b_b79k", 1024),
    "linear": Published(lambda: nn.Linear(512, 1), ImportKind.LINEAR, "demo", 512),
}


def vectors(dim: int) -> np.ndarray:
    return unit(np.random.default_rng(1).normal(size=(VECTORS, dim)))


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_the_arithmetic_is_that_of_the_published_module(tmp_path: Path, published: Published) -> None:
    torch.manual_seed(0)
    module = published.make().eval()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save(module.state_dict()))
    x = vectors(published.dim)

    made = import_head(path, model=published.model, kind=published.kind)

    with torch.no_grad():
        theirs = module(torch.from_numpy(x)).numpy()
    assert theirs.std() > 0
    np.testing.assert_allclose(head_scores(made, x), theirs, atol=1e-5, rtol=0)
    assert (made.head.input.model, made.head.input.fingerprint) == (published.model, None)


def save_with_torch(value: object, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


class TestTorchFiles:
    """What `torch.save` writes, read by the real child process."""

    def test_weights_that_were_saved_on_a_gpu(self, tmp_path: Path) -> None:
        """The published aesthetic v2 is such a file; a GPU is named in each storage."""
        torch.manual_seed(0)
        module = aesthetic_v2().eval()
        plain = save_with_torch(module.state_dict(), tmp_path / "plain.pth")
        path = tmp_path / "linearMSE.pth"
        with zipfile.ZipFile(plain) as read, zipfile.ZipFile(path, "w") as written:
            for entry in read.infolist():
                content = read.read(entry)
                if entry.filename.endswith("data.pkl"):
                    assert b"X\x03\x00\x00\x00cpu" in content
                    content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                written.writestr(entry.filename, content)

        made = import_head(path, model="ViT-L-14:openai")

        x = vectors(768)
        with torch.no_grad():
            theirs = module(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(head_scores(made, x), theirs, atol=1e-5, rtol=0)
        assert (made.head.name, made.head.licence) == ("aesthetic_v2", "Apache-2.0")

    def test_the_format_before_torch_1_6(self, tmp_path: Path) -> None:
        layer = nn.Linear(8, 3)
        path = save_with_torch(layer.state_dict(), tmp_path / "x.pt", _use_new_zipfile_serialization=False)

        made = import_head(path, model="demo", labels=("a", "b", "c"))

        np.testing.assert_array_equal(made.arrays()["0.weight"], layer.weight.detach().numpy())

    @pytest.mark.parametrize(
        ("kept", "problem"),
        [
            ("code", "holds posix.system, which is no tensor and may run code: it is refused"),
            ("module", r"holds torch\.nn\.modules\.linear\.Linear, .*save `model\.state_dict\(\)`"),
            ("one number as a huge tensor", "more than 16,777,216 numbers"),
            ("a tensor that fills the memory", "ran out of memory"),
            ("nested", "state_dict is a dict, not a tensor; save the tensors alone"),
            ("script", "is TorchScript, which is code"),
            ("bomb", "is a compressed zip, which torch never writes"),
            ("cut", "not a file of tensors that torch reads"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, kept: str, problem: str) -> None:
        path = tmp_path / "given.pth"
        HOSTILE[kept](path)

        with pytest.raises(UsageError, match=problem) as refused:
            import_head(path, model="demo")

        assert str(refused.value).startswith(f"{path}: ")
        assert "weights_only" not in str(refused.value)
        assert [one.name for one in tmp_path.iterdir()] == ["given.pth"]

    def test_without_torch_the_way_out_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = save_with_torch(torch.zeros(3), tmp_path / "x.pth")
        monkeypatch.setattr(foreign, "find_spec", lambda name: None)

        with pytest.raises(UsageError, match=r"pip install 'clipfleet\[worker\]'"):
            import_head(path, model="demo")


class _Calls:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def write_code(path: Path) -> None:
    torch.save({"weight": _Calls(os.system, f"touch {path.parent}/ran")}, path)


def write_script(path: Path) -> None:
    """As `torch.jit.save` arranges it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"x/{name}", pickle.dumps({}))


def write_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
        archive.writestr("x/data/0", bytes(100 << 20))


def write_half(path: Path) -> None:
    torch.save(torch.zeros(100), path)
    path.write_bytes(path.read_bytes()[:600])


HOSTILE: dict[str, Callable[[Path], object]] = {
    "code": write_code,
    "module": lambda path: torch.save(nn.Linear(3, 2), path),
    "one number as a huge tensor": lambda path: torch.save(
        {"weight": torch.zeros(1).expand(10**6, 10**6)}, path
    ),
    "a tensor that fills the memory": lambda path: torch.save(
        {"weight": _Calls(torch.Tensor, 10**6, 10**5)}, path
    ),
    "nested": lambda path: torch.save({"state_dict": {"weight": torch.zeros(2, 3)}, "epoch": 3}, path),
    "script": write_script,
    "bomb": write_bomb,
    "cut": write_half,
}


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def npy_header(text: str, rest: bytes = b"") -> bytes:
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + rest


def claims(shape: Sequence[int], dtype: str = "F32") -> bytes:
    header = json.dumps({"weight": {"dtype": dtype, "shape": list(shape), "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not .safetensors, .npy or a file of torch"),
        (b"<!DOCTYPE html>" * 100, "is not .safetensors, .npy or a file of torch"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (claims([10**6, 10**6]), "not a complete safetensors file"),
        (claims([1], "I32"), "weight is I32"),
        (npy(np.zeros((3, 2)))[:-1], r"says that its shape is \[3, 2\], but has 47 bytes"),
        (npy_header("{'descr':'<f8','fortran_order':False,'shape':(1000000,1000000)}"), "but has 0 bytes"),
        (
            npy_header("{'descr':'<f8','fortran_order':False,'shape':(-2,-2)}", bytes(32)),
            "says that its shape",
        ),
        (npy_header("{'descr':'|O','fortran_order':False,'shape':(1,)}", pickle.dumps([1])), "holds object"),
        (npy_header("__import__('os').abort()"), "its .npy header is damaged"),
        (npy_header("[" * 100), "its .npy header is damaged"),
        (npy(np.zeros((3, 2), np.int64)), "holds int64"),
        (npy(np.full((3, 2), np.nan)), r"0\.weight holds a number that is not finite"),
        (npy(np.full((3, 2), 1e300)), r"0\.weight holds a number that is not finite"),
        (npy(np.zeros((2, 3))), r"has 3 outputs .*\(2 were given\); it seems to be transposed"),
        (npy(np.zeros(3)), r"are those of no known head: tensor \[3\]"),
        (npy(np.zeros((0, 2))), "are those of no known head"),
        (save_arrays({"weight": np.zeros((3, 4)), "bias": np.zeros(2)}), "are those of no known head"),
        (save_arrays({"w": np.zeros((2, 4)), "b": np.zeros(2)}), "are those of no known head: "),
        (save_arrays({f"{n}": np.zeros(1) for n in range(100)}), "has 100 tensors"),
        (save_arrays({"weight": np.zeros((1, 512)), "bias": np.zeros(1)}), "may be aesthetic-v1 or linear"),
    ],
)
def test_a_file_that_is_no_head_is_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "strange.bin"
    path.write_bytes(data)

    with pytest.raises(UsageError, match=problem):
        import_head(path, model="demo", labels=("a", "b"))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.mkdir(), "Is a directory"),
        (os.mkfifo, "is a pipe or a device; give a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a pipe or a device; give a file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 36), "larger than 64 MiB"),
        (lambda path: None, "No such file"),
    ],
)
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], object], problem: str
) -> None:
    path = tmp_path / "x"
    make(path)

    for read in (read_head, lambda path: import_head(path, model="demo")):
        with pytest.raises(UsageError, match=f"{path}: {problem}"):
            read(path)


def imported(tmp_path: Path, arrays: dict[str, np.ndarray], **options: Any) -> HeadFile:
    path = tmp_path / "my probe.safetensors"
    path.write_bytes(save_arrays(arrays))
    return import_head(path, **{"model": "demo"} | options)


class TestLinear:
    def test_a_layer_with_several_outputs_chooses_among_labels(self, tmp_path: Path) -> None:
        weight = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float16)

        head = imported(tmp_path, {"fc.weight": weight}, labels=("a", "b", "c"))

        assert (head.head.kind, head.head.name, head.head.labels) == ("classify", "my_probe", ("a", "b", "c"))
        assert head_scores(head, vectors(8)).argmax(axis=1).tolist() == (
            (vectors(8) @ weight.T.astype(np.float32)).argmax(axis=1).tolist()
        )

    def test_a_zero_shot_classifier_has_the_probabilities_of_clip_benchmark(self, tmp_path: Path) -> None:
        classes = unit(np.random.default_rng(0).normal(size=(3, 8))).T
        path = tmp_path / "classifier.npy"
        np.save(path, np.asfortranarray(classes))

        head = import_head(path, model="demo", labels=("a", "b", "c"))

        logits = torch.from_numpy(100 * vectors(8) @ classes)
        np.testing.assert_allclose(head_scores(head, vectors(8)), logits.softmax(dim=1).numpy(), atol=1e-5)

    @pytest.mark.parametrize("outputs", [1, 3])
    def test_a_sigmoid_for_each_label(self, tmp_path: Path, outputs: int) -> None:
        layer, labels = nn.Linear(8, outputs), tuple("abc"[:outputs])
        arrays = {name: one.numpy() for name, one in layer.state_dict().items()}

        made = imported(tmp_path, arrays, labels=labels, multi=True)

        assert (made.head.kind, made.head.labels) == ("multilabel", labels)
        assert made.head.training.recipe == "import of linear, a sigmoid for each label"
        with torch.no_grad():
            theirs = layer(torch.from_numpy(vectors(8))).sigmoid().numpy()
        np.testing.assert_allclose(head_scores(made, vectors(8)), theirs, atol=1e-5)

    def test_a_zero_shot_classifier_chooses_one_label(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.eye(8, 2))
        with pytest.raises(UsageError, match=r"is a zero-shot classifier, .* leave `multi=True` out"):
            import_head(tmp_path / "x.npy", model="demo", labels=("a", "b"), multi=True)

    def test_bfloat16_is_read(self, tmp_path: Path) -> None:
        weight = torch.randn(2, 8).to(torch.bfloat16)
        path = tmp_path / "x.safetensors"
        path.write_bytes(save({"weight": weight, "bias": torch.zeros(2)}))

        head = import_head(path, model="demo", labels=("a", "b"))

        np.testing.assert_array_equal(head.arrays()["0.weight"], weight.float().numpy())

    @pytest.mark.parametrize(
        ("labels", "problem"),
        [
            (
                (),
                r"has 3 outputs of 8 numbers: give 3 labels with `labels=`, .* \(none was given",
            ),
            (("a", "b"), r"give 3 labels .* \(2 were given\)$"),
            (tuple("abcdefgh"), "transposed"),
            (("a", "b", "b"), "'b' appears twice"),
        ],
    )
    def test_labels_name_the_outputs(self, tmp_path: Path, labels: Sequence[str], problem: str) -> None:
        with pytest.raises(UsageError, match=problem):
            imported(tmp_path, {"weight": np.zeros((3, 8))}, labels=labels)


V2 = {name: one.numpy() for name, one in aesthetic_v2().state_dict().items()}


@pytest.mark.parametrize(
    ("change", "options", "problem"),
    [
        ({"layers.9.weight": np.zeros((1, 1))}, {}, "are those of no known head: .* and 7 more"),
        (
            {"layers.9.weight": np.zeros((1, 1))},
            {"kind": ImportKind.AESTHETIC_V2},
            "tensor 'layers.9.weight' is too many",
        ),
        ({}, {"kind": ImportKind.NSFW_H14}, r"is not nsfw-h14: there is no tensor 'layers\.3\.weight'"),
        ({}, {"kind": ImportKind.LINEAR}, "is not linear, .*: give `kind=` aesthetic-v2, which it looks"),
        ({}, {"kind": ImportKind.AESTHETIC_V1}, "no tensor 'weight'; .*: give `kind=` aesthetic-v2, which"),
        ({}, {"multi": True}, "`multi=True` is for linear"),
        (
            {"layers.2.weight": np.zeros((128, 9), np.float32)},
            {"kind": ImportKind.AESTHETIC_V2},
            r"layers\.2\.weight has the shape \[128, 9\], \[128, 1024\] fits",
        ),
        ({"layers.7.bias": np.full(1, np.inf, np.float32)}, {}, "not finite"),
        ({}, {"labels": ("good",)}, "`labels=` is for linear"),
        ({}, {"model": "ViT-B-32:datacomp_xl_s13b_b90k"}, "fitted on vectors of ViT-L-14:openai; .*`model=`"),
        ({}, {"model": "nope"}, "does not name its weights"),
        ({}, {"name": "no name"}, "a name begins with a letter"),
    ],
)
def test_a_public_head_that_does_not_fit(
    tmp_path: Path, change: dict[str, np.ndarray], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        imported(tmp_path, V2 | change, **({"model": "ViT-L-14:openai"} | options))


def test_a_public_head_takes_the_vectors_of_a_model_in_a_folder(tmp_path: Path) -> None:
    head = imported(tmp_path, V2, model="local-dir:/models/l14", name="taste")

    assert (head.head.input.model, head.head.name) == ("local-dir:/models/l14", "taste")
    assert (head.head.kind, head.head.labels) == (HeadKind.REGRESS, ("aesthetic",))
