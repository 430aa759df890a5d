"""An HTTP server of a folder on a free loopback port, in a process of its own.

    python -m ops.bench.file_server FOLDER

Prints the port, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

from tests.support.documents import ROOT


async def serve(folder: Path) -> None:
    """Serve until standard input ends."""
    app = web.Application()
    app.router.add_static("/", folder)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Start the server in a process of its own, and end it; its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ops.bench.file_server", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield int(process.stdout.readline() if process.stdout else "")
    finally:
        process.communicate()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
