"""`up --stop` returns once the process has ended, not when it has released its folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from clipfleet_worker.machine.kept import KeptUp
from clipfleet_worker.machine.up_folder import UpFolder
from tests.support.waiting import wait_until

# Between the release of the folder and the end of the process; on a busy machine it may take this long
_SLOW_TO_END = """
import signal, sys, time
from pathlib import Path
from clipfleet_worker.machine.up_folder import RunningUp, UpFolder
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
folder = UpFolder(Path(sys.argv[1]))
folder.make()
with folder.held(RunningUp.this_process(has_command=False)):
    signal.sigwait({signal.SIGTERM})
time.sleep(2)
"""


def test_a_stop_waits_for_the_end_of_the_process(tmp_path: Path) -> None:
    folder = UpFolder(tmp_path / "up")
    with subprocess.Popen([sys.executable, "-c", _SLOW_TO_END, str(folder.path)]) as process:
        try:
            wait_until(lambda: folder.running() is not None, "it holds the folder")
            assert KeptUp(folder.path).stop() == 0
            # Until `poll` it is a zombie, as it would be in a container without an init
            assert process.poll() is not None
        finally:
            process.kill()
