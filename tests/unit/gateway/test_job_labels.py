"""Label sets of a job of `/v1/jobs`: as they are asked for, and as a gateway reads them back to submit it."""

from __future__ import annotations

import pytest

from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.jobs.submitting import label_sets
from clipfleet_gateway.shapes.jobs import JobBody, JobRequest


def asked(label_set: object) -> JobRequest:
    return JobRequest.model_validate(
        {"task": "classify", "items": ["https://a.example/1.jpg"], "label_sets": {"kinds": label_set}}
    )


@pytest.mark.parametrize(
    "label_set",
    [
        {"labels": ["cat", "dog"]},
        {"labels": [{"name": "cat", "threshold": 0.3}, "dog"], "kind": "multi"},
        {"labels": [{"name": "cat", "not": ["a fox"]}], "none": True, "background": ["a thing"]},
        {"preset": "imagenet1k-simple"},
    ],
)
def test_they_are_the_same_after_they_were_kept(label_set: object) -> None:
    request = asked(label_set)

    kept = JobBody.model_validate_json(request.model_dump_json(by_alias=True, exclude={"items", "source"}))

    (found,) = label_sets(request)
    assert label_sets(kept) == (found,)
    assert found.name == "kinds"


def test_what_is_wrong_is_one_line() -> None:
    with pytest.raises(
        ApiError, match="label_sets: kinds: background: `background` has no meaning"
    ) as caught:
        label_sets(asked({"labels": ["cat"], "background": ["a thing"]}))
    assert "\n" not in caught.value.message
