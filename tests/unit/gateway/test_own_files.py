"""Own files in `items` of a job: there, small enough, and not too much together."""

from __future__ import annotations

import pytest

from clipfleet.outputs.folder import FolderOutput
from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.files.record import Purpose
from clipfleet_gateway.jobs.submitting import require_allowed
from clipfleet_gateway.shapes.jobs import JobRequest
from tests.support.batches import Desk, saved


@pytest.fixture
def desk(place: FolderOutput, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr("clipfleet_gateway.inputs.own_files.MOST_IMAGE_BYTES", 10)
    monkeypatch.setattr("clipfleet_gateway.jobs.submitting.MOST_ITEMS_BYTES", 20)
    return Desk(place)


def refused(desk: Desk, *file_ids: str) -> tuple[int, str | None, str | None] | None:
    key = desk.keys.find("mine")
    assert key is not None
    request = JobRequest.model_validate({"task": "embed", "items": file_ids}, strict=False)
    try:
        require_allowed(request, key, desk.files)
    except ApiError as error:
        return error.status, error.code, error.param
    return None


def test_each_mention_counts(desk: Desk) -> None:
    image = saved(desk.files, "mine", b"0123456789", Purpose.VISION).id

    assert refused(desk, image, image) is None
    assert refused(desk, image, image, image) == (400, "too_many_bytes", "items[2]")


def test_files_that_are_no_image_of_this_key(desk: Desk) -> None:
    large = saved(desk.files, "mine", b"x" * 11).id
    others = saved(desk.files, "other", b"x").id

    assert refused(desk, large) == (400, "image_too_large", "items[0]")
    assert refused(desk, others) == (404, "not_found", "items[0]")
