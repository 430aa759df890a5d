"""Programs of another schema version: `python -m tests.support.versions VERSION worker`, or
`... VERSION submit SOURCE OUTPUT JOB_ID CHUNK_SIZE`.

The version is set before anything that uses it is imported. The ledger's scripts are others too, by hash.
"""

from __future__ import annotations

import sys

from clipfleet.contract import versions
from clipfleet.ledger import scripts as lua_scripts


def become(version: int) -> None:
    """Write this version, read it and the one before it."""
    versions.SCHEMA_VERSION = version
    versions.lowest_version = lambda **_: version
    versions.READABLE_SCHEMA_VERSIONS = (version, version - 1)
    whole_script = lua_scripts.whole_script
    lua_scripts.whole_script = lambda shared, script: (
        f"{whole_script(shared, script)}\n-- version {version}\n"
    )


def run_worker() -> None:
    from clipfleet.settings import checked
    from clipfleet_worker.assembly.worker import Worker
    from clipfleet_worker.process.drain import end_process
    from clipfleet_worker.process.logs import log_to_stderr
    from clipfleet_worker.settings import WorkerSettings

    log_to_stderr()
    end_process(Worker(checked(WorkerSettings), preload=True).run())


def submit(source: str, output: str, job_id: str, chunk_size: str) -> None:
    from clipfleet.client import Client, JobOptions

    with Client() as client:
        options = JobOptions(output=output, model="demo", job_id=job_id, chunk_size=int(chunk_size))
        client.embed(source, options=options)


if __name__ == "__main__":
    become(int(sys.argv[1]))
    match sys.argv[2:]:
        case ["worker"]:
            run_worker()
        case ["submit", *arguments]:
            submit(*arguments)
