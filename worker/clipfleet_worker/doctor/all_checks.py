"""The checks for a worker's settings, cheap ones first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from clipfleet_worker.doctor import Check
from clipfleet_worker.doctor.folder_check import folder_findings, no_folder_findings
from clipfleet_worker.doctor.machine_check import decode_findings, machine_findings, settings_findings
from clipfleet_worker.doctor.model_check import device_findings, model_findings
from clipfleet_worker.doctor.redis_check import broker_findings, redis_findings
from clipfleet_worker.doctor.s3_check import s3_findings
from clipfleet_worker.process.watchdog import LOAD_LIMIT_SECONDS
from clipfleet_worker.settings import WorkerSettings


def all_checks(
    settings: WorkerSettings, environment: Mapping[str, str], s3_outputs: Sequence[str]
) -> Iterator[Check]:
    """Yield the checks in their order.

    Args:
        settings: of the worker.
        environment: variables, to find misspelt ones.
        s3_outputs: `s3://BUCKET/PREFIX` of future results.
    """
    yield Check("settings", 5, partial(settings_findings, environment))
    yield Check("machine", 20, partial(machine_findings, settings))
    yield Check("redis", 30, partial(redis_findings, settings))
    yield Check("broker", 30, partial(broker_findings, settings))
    for is_output, roots in ((False, settings.file_roots), (True, settings.output_roots)):
        for root in roots:
            yield Check("folders", 20, partial(folder_findings, Path(root), is_output))  # a share may hang
        if not roots:
            yield Check("folders", 1, partial(no_folder_findings, is_output))
    for uri in s3_outputs:
        yield Check("s3", 60, partial(s3_findings, uri, is_output=True, buckets=settings.s3_buckets))
    for bucket in settings.s3_buckets:
        yield Check("s3", 60, partial(s3_findings, f"s3://{bucket}", is_output=False))
    yield Check("device", 120, partial(device_findings, settings))  # CUDA starts slowly
    yield Check("decode", 60, partial(decode_findings, settings.max_pixels))
    for model in settings.models:
        yield Check("model", LOAD_LIMIT_SECONDS, partial(model_findings, settings, model))
