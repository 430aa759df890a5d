"""The heads of jobs: read from beside the output, checked against the model, kept on the device."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

from clipfleet.contract.heads import JobHead
from clipfleet.contract.jobs import Job
from clipfleet.errors import OutputDamagedError, OutputUnavailableError, UsageError
from clipfleet.heads.files import parse_head
from clipfleet.outputs import Output, objects
from clipfleet_worker.failures import ModelMismatchError
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.process.device import memory_errors
from clipfleet_worker.score.heads import DeviceHead

_KEPT = 32
_KEPT_BYTES = 256 << 20  # of the device; the one that was used last is kept, of any size


class HeadCache:
    """Heads by their content and the device. Thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], DeviceHead] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def get(self, places: Sequence[Output], job: Job, model: LoadedModel) -> list[DeviceHead]:
        """The heads of a job, in its order.

        Args:
            places: where their files may lie; the first is that of the output.
            job: see above.
            model: that makes the vectors.

        Raises:
            ModelMismatchError: a head is of another model.
            OutputUnavailableError: the file of a head is not there now.
            OutputDamagedError: it has another content.
            MemoryError: the device has no room now.
        """
        return [self._get(places, job, one, model) for one in job.heads]

    def _get(self, places: Sequence[Output], job: Job, one: JobHead, model: LoadedModel) -> DeviceHead:
        _require_fit(one, job, model)
        key = (one.sha256, model.device)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return _as_told(self._kept[key], one, places[0])
        made = _as_told(_read(places, one, model.device), one, places[0])
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > 1 and (len(self._kept) > _KEPT or self._nbytes() > _KEPT_BYTES):
                self._kept.popitem(last=False)
        return made

    def _nbytes(self) -> int:
        return sum(one.nbytes for one in self._kept.values())


def _require_fit(one: JobHead, job: Job, model: LoadedModel) -> None:
    """Raise `ModelMismatchError` unless the head was fitted on vectors of the model, in any precision."""
    wanted = one.head.input
    if wanted.dim != model.embedding_dimension:
        raise ModelMismatchError(
            f"head {one.name!r} takes vectors of length {wanted.dim}, {job.model} makes vectors of length "
            f"{model.embedding_dimension}: fit a head on vectors of this model"
        )
    if wanted.fingerprint is not None and not model.has_made(wanted.fingerprint, job.decode, job.exif):
        raise ModelMismatchError(
            f"head {one.name!r} is for vectors with the fingerprint {wanted.fingerprint} ({wanted.model}), "
            f"those of this job have {model.fingerprint_for(job.decode, job.exif)}: use the model, `decode=` "
            "and `exif=` that it was fitted with, or fit a head on vectors of this job"
        )


def _as_told(found: DeviceHead, one: JobHead, output: Output) -> DeviceHead:
    """What was found, if the job says the same of it: what it says was checked against the model."""
    if found.head != one.head:
        raise OutputDamagedError(
            f"{output.uri}/{objects.head_file(one.sha256)}: the file of head {one.name!r} says other things "
            "of it than the job does: submit the job again"
        )
    return found


def _read(places: Sequence[Output], one: JobHead, device: str) -> DeviceHead:
    name = objects.head_file(one.sha256)
    found = ((output, data) for output in places if (data := output.read(name)) is not None)
    output, data = next(found, (places[0], None))
    if data is None:
        raise OutputUnavailableError(
            f"{output.uri}/{name}: the head {one.name!r} is missing (not visible yet?)"
        )
    if hashlib.sha256(data).hexdigest() != one.sha256:
        raise OutputDamagedError(f"{output.uri}/{name}: is not the head {one.name!r} that was submitted")
    try:
        file = parse_head(data, f"{output.uri}/{name}")
    except UsageError as error:
        raise OutputDamagedError(str(error)) from error
    with memory_errors():
        return DeviceHead.of(file, device)
