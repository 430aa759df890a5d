"""A real worker with an encoder of negligible cost: `-m ops.bench.fake_worker [DIMENSION]`.

All else is what `clipfleet-worker run` runs, so that a bench measures the cost of a worker without its model.
"""

from __future__ import annotations

import sys

from clipfleet.allocator import choose_allocator


def main() -> None:
    """Work until SIGTERM."""
    choose_allocator()
    from typing import cast

    from clipfleet.settings import checked
    from clipfleet_worker.assembly.worker import Worker
    from clipfleet_worker.models.loaded import LoadedModel
    from clipfleet_worker.process.drain import end_process
    from clipfleet_worker.process.logs import log_to_stderr
    from clipfleet_worker.settings import WorkerSettings
    from ops.bench.free_encoder import FreeEncoder

    dimensions = [int(word) for word in sys.argv[1:]]

    def load_fake(name: str, *_: object) -> LoadedModel:
        return cast(LoadedModel, FreeEncoder(name, *dimensions))

    log_to_stderr()
    end_process(Worker(checked(WorkerSettings), preload=True, load_model=load_fake).run())


if __name__ == "__main__":
    main()
