"""Images that harm their decoder cost their own rows, also where several of them share a chunk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.suspects import CODES, SETTINGS, run_with_restarts, write_hostile_images

pytestmark = [pytest.mark.figures, pytest.mark.timeout(400), pytest.mark.long]

DEEDS = {3 + 5 * number: deed for number, deed in enumerate(CODES)}


def expected(count: int) -> dict[int, str | None]:
    return dict.fromkeys(range(count)) | {number: CODES[deed] for number, deed in DEEDS.items()}


def test_images_that_harm_their_decoder_in_one_chunk(tmp_path: Path) -> None:
    """The first death has the chunk read by children: each of the others costs one of these, no worker."""
    with Cluster(tmp_path, SETTINGS) as cluster:
        write_hostile_images(tmp_path / "images", 60, DEEDS)
        ending = run_with_restarts(cluster, tmp_path / "images", chunk_size=30)

    print(f"\nworkers died with {ending.exit_codes}")
    assert ending.status["state"] == "completed_with_errors"
    assert (ending.codes, ending.decode_children) == (expected(60), [])
    assert 1 <= len(ending.exit_codes) <= 6


@pytest.mark.parametrize(("isolates", "image_format"), [("1", "WEBP"), ("0", "AVIF"), ("0", "HEIF")])
def test_a_worker_that_isolates_its_decoders_loses_nothing_but_the_rows(
    tmp_path: Path, isolates: str, image_format: str
) -> None:
    """That of AVIF and HEIF it isolates in any case."""
    with Cluster(tmp_path, SETTINGS | {"CLIPFLEET_ISOLATE_DECODE": isolates}) as cluster:
        write_hostile_images(tmp_path / "images", 40, DEEDS, image_format=image_format)
        ending = run_with_restarts(cluster, tmp_path / "images", chunk_size=40)

    assert (ending.codes, ending.decode_children, ending.exit_codes) == (expected(40), [], [])
