"""A worker whose decoder can be harmed by images: `python -m tests.support.hostile_worker`."""

from __future__ import annotations

import sys

from clipfleet.settings import checked
from clipfleet_worker.assembly.worker import Worker
from clipfleet_worker.process.logs import log_to_stderr
from clipfleet_worker.settings import WorkerSettings
from tests.support.hostile_decoder import HostileDecoder

if __name__ == "__main__":
    log_to_stderr()
    sys.exit(Worker(checked(WorkerSettings), preload=True, decoder_class=HostileDecoder).run())
