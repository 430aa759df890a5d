"""What killed gateways leave in the place is removed by the others, and nothing that is in use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.gateway_app import gateway_services

# An upload that is killed in the middle.
KILLED = """
import os, signal, sys
from pathlib import Path
from clipfleet.outputs.folder import FolderOutput
from clipfleet_gateway.files.store import FileStore
received = FileStore(FolderOutput(Path(sys.argv[1]))).receive()
received.write(b"half of it")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_upload_leaves_nothing_a_day_later(tmp_path: Path) -> None:
    place = tmp_path / "gateway"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(place)], check=False)
    assert killed.returncode < 0
    (left,) = [path for path in place.rglob("*") if path.is_file()]

    with gateway_services(str(place)) as services:
        services.sweep()
        assert left.read_bytes() == b"half of it", "its upload may be under way"
        os.utime(left, (left.stat().st_atime, left.stat().st_mtime - 25 * 3600))
        services.sweep()

    assert [path for path in place.rglob("*") if path.is_file()] == []
