"""Which checks there are for a worker with certain settings, cheap ones first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from clipfleet_worker.doctor import Check
from clipfleet_worker.doctor.broker_check import BrokerCheck
from clipfleet_worker.doctor.decode_check import DecodeCheck
from clipfleet_worker.doctor.folder_check import FolderCheck, NoFolders
from clipfleet_worker.doctor.machine_check import MachineCheck, SettingsCheck
from clipfleet_worker.doctor.model_check import DeviceCheck, ModelCheck
from clipfleet_worker.doctor.redis_check import RedisCheck
from clipfleet_worker.doctor.s3_check import S3Check
from clipfleet_worker.settings import WorkerSettings


def all_checks(
    settings: WorkerSettings, environment: Mapping[str, str], s3_outputs: Sequence[str]
) -> Iterator[Check]:
    """The checks in their order.

    Args:
        settings: of the worker.
        environment: variables, for what is misspelt among them.
        s3_outputs: `s3://BUCKET/PREFIX` of results to come.
    """
    yield SettingsCheck(environment)
    yield MachineCheck(settings)
    yield RedisCheck(settings)
    yield BrokerCheck(settings)
    for is_output, roots in ((False, settings.file_roots), (True, settings.output_roots)):
        for root in roots:
            yield FolderCheck(Path(root), is_output)
        if not roots:
            yield NoFolders(is_output)
    for uri in s3_outputs:
        yield S3Check(uri, is_output=True, buckets=settings.s3_buckets)
    for bucket in settings.s3_buckets:
        yield S3Check(f"s3://{bucket}", is_output=False)
    yield DeviceCheck(settings)
    yield DecodeCheck(settings.max_pixels)
    for model in settings.models:
        yield ModelCheck(settings, model)
