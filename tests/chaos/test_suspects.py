"""Two thousand images, of which five kill whatever decodes them, each in its way and in its own chunk."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, job_events
from tests.support.suspects import CODES, SETTINGS, run_with_restarts, write_hostile_images

pytestmark = [pytest.mark.figures, pytest.mark.timeout(400)]

COUNT = 2000
FEW_AT_A_TIME = {"CLIPFLEET_ITEMS_IN_FLIGHT": "200"}  # so that no death makes suspects of all the others


def test_five_images_that_kill_their_decoder_cost_five_rows(tmp_path: Path) -> None:
    deeds = {200 + 400 * number: deed for number, deed in enumerate(CODES)}
    started = time.monotonic()
    with Cluster(tmp_path, SETTINGS | FEW_AT_A_TIME) as cluster:
        write_hostile_images(tmp_path / "images", COUNT, deeds)
        ending = run_with_restarts(cluster, tmp_path / "images", chunk_size=50)
        events = job_events(cluster, ending.status["job_id"])

    print(f"\nworkers died with {ending.exit_codes}; {time.monotonic() - started:.0f} s")
    assert ending.status["state"] == "completed_with_errors"
    codes = {number: CODES[deed] for number, deed in deeds.items()}
    assert ending.codes == dict.fromkeys(range(COUNT)) | codes
    assert len(events) == 1
    assert ending.decode_children == []
    assert len(ending.exit_codes) <= 6
