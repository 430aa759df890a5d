"""Which backend runs a model on the processor: `CLIPFLEET_BACKEND`, and what `auto` makes of it.

`auto` is OpenVINO wherever the extra `[openvino]` is installed and the model converts, else torch. Rates of
OpenVINO to those of `torch_backend`, batches of 32, per second of one core (Xeon with AVX-512 and AMX):

| model | precision | images | texts |
|---|---|---|---|
| ViT-B-32 | fp32 | 1.0 | 1.2 |
| ViT-B-32 | bf16 | 1.1 | 1.4 |
| demo (ResNet) | fp32 | 1.8 | 1.2 |
| demo (ResNet) | bf16 | 2.3 | 1.2 |

The rule knows neither models nor precisions: torch was faster with none. OpenVINO takes 3 s of one core
longer to load ViT-B-32, and holds its weights twice. `python -m ops.bench.forward` measures it anew.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec

from clipfleet.errors import UsageError
from clipfleet_worker.backends import Backend, MakeBackend, Towers
from clipfleet_worker.backends.openvino_backend import OpenVinoBackend, Unconvertible
from clipfleet_worker.backends.torch_backend import TorchBackend

log = logging.getLogger(__name__)


def cpu_backends(setting: str, device: str = "cpu") -> MakeBackend:
    """What makes the backends of models on the processor; for another device torch's plain one.

    Args:
        setting: `auto`, `torch` or `openvino`.
        device: the worker's, by torch's name.

    Raises:
        UsageError: OpenVINO is asked for, and not installed or not for this device.
    """
    is_installed = find_spec("openvino") is not None
    if setting == "openvino" and not is_installed:
        raise UsageError(
            'CLIPFLEET_BACKEND is openvino, which is not installed: run `pip install "clipfleet[openvino]"`'
        )
    if setting == "openvino" and device != "cpu":
        raise UsageError(
            f"CLIPFLEET_BACKEND is openvino, which is for the CPU, but the device is {device}: "
            "set CLIPFLEET_DEVICE=cpu, or leave CLIPFLEET_BACKEND away"
        )
    is_wanted = is_installed and setting != "torch" and device == "cpu"
    return _openvino_or_torch if is_wanted else TorchBackend


def _openvino_or_torch(towers: Towers, device: str) -> Backend:
    try:
        return OpenVinoBackend(towers, device)
    except Unconvertible as error:
        log.warning(
            "torch runs this model, OpenVINO cannot: %s", error, extra={"action": "backend_fell_back"}
        )
        return TorchBackend(towers, device)
