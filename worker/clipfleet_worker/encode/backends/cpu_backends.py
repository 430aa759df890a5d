"""Which backend runs a model on the CPU: `CLIPFLEET_BACKEND`, and what `auto` makes of it.

`auto` is OpenVINO if the extra `[openvino]` is installed and the model consists of parts that were tried with
it: open_clip's own towers, and timm's plain vision transformers (SigLIP). Torch runs all other models:
OpenVINO does not refuse every model that it cannot run. 2026.4 ends the process with a division by zero when
it compiles ViTamin-S for bf16, and so it does after every restart. `openvino` tries all models with it.

Rates of OpenVINO to those of `torch_backend`, by `python -m ops.bench.forward --cpu --threads 1 --batches 32`
on a Xeon with AVX-512 and AMX:

| model | precision | images | texts |
|---|---|---|---|
| ViT-B-32 | fp32 | 1.0 | 1.2 |
| ViT-B-32 | bf16 | 1.1 | 1.4 |
| demo (ResNet) | fp32 | 1.8 | 1.2 |
| demo (ResNet) | bf16 | 2.3 | 1.2 |

The choice does not depend on the precision: torch was faster in none. OpenVINO holds the weights twice. Its
first start with a model takes more than twice torch's CPU seconds, later ones as many as torch's, see
`kept_arrays`.
"""

from __future__ import annotations

import logging
from functools import partial
from importlib.util import find_spec

from clipfleet.errors import UsageError
from clipfleet_worker.encode.backends import Backend, MakeBackend, Towers
from clipfleet_worker.encode.backends.openvino_backend import OpenVinoBackend, Unconvertible
from clipfleet_worker.encode.backends.side_by_side import SideBySideBackends
from clipfleet_worker.encode.backends.torch_backend import TorchBackend

log = logging.getLogger(__name__)

# Modules of Python whose layers and towers were tried with OpenVINO and side by side, in both precisions.
_TRIED = ("torch.nn.", "open_clip.", "clipfleet_worker.", "timm.layers.", "timm.models.vision_transformer")


def cpu_backends(setting: str, device: str = "cpu") -> MakeBackend:
    """A function that makes the backends of models on the CPU; for another device, torch's plain backend.

    Args:
        setting: `auto`, `torch` or `openvino`.
        device: the worker's, by torch's name.

    Raises:
        UsageError: OpenVINO is set, but not installed or not for this device.
    """
    is_installed = find_spec("openvino") is not None
    if setting == "openvino" and not is_installed:
        raise UsageError(
            "CLIPFLEET_BACKEND is openvino, which is not installed; "
            "run `pip install -e '.[openvino]'` in a clone"
        )
    if setting == "openvino" and device != "cpu":
        raise UsageError(
            f"CLIPFLEET_BACKEND is openvino, which is for the CPU, but the device is {device}; "
            "set CLIPFLEET_DEVICE=cpu, or unset CLIPFLEET_BACKEND"
        )
    if device != "cpu":
        return TorchBackend
    if setting == "torch" or not is_installed:
        return partial(_by_torch, SideBySideBackends())
    return partial(_by_openvino, SideBySideBackends(), tries_all=setting == "openvino")


def _by_openvino(
    side_by_side: SideBySideBackends,
    towers: Towers,
    device: str,
    *,
    tries_all: bool,
) -> Backend:
    untried = _untried_part(towers)
    if untried is not None and not tries_all:
        log.info(
            "torch runs this model: %s was not tried with OpenVINO",
            untried,
            extra={"action": "backend_not_tried"},
        )
        return _by_torch(side_by_side, towers, device)
    try:
        return side_by_side.make(lambda streams: OpenVinoBackend(towers, device, streams))
    except Unconvertible as error:
        log.warning(
            "torch runs this model, OpenVINO cannot: %s", error, extra={"action": "backend_fell_back"}
        )
        return _by_torch(side_by_side, towers, device)


def _by_torch(side_by_side: SideBySideBackends, towers: Towers, device: str) -> Backend:
    """Side by side, unless a part of the model is untried: it might keep state between calls."""
    one = TorchBackend(towers, device)
    return one if _untried_part(towers) else side_by_side.make(lambda _: one)


def _untried_part(towers: Towers) -> str | None:
    names = (f"{type(part).__module__}.{type(part).__qualname__}" for part in towers.module.modules())
    return next((name for name in names if not name.startswith(_TRIED)), None)
