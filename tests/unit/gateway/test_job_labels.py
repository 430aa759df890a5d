"""Label sets of a job of `/v1/jobs`: as they are asked for, and as a gateway reads them back to submit it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.jobs.submitting import label_sets
from clipfleet_gateway.shapes.jobs import JobBody, JobRequest
from clipfleet_gateway.web import jobs as web_jobs
from tests.support.gateway_app import asking, gateway_services


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


def test_a_job_has_only_so_many_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are kept in Redis, and in each version of its record; items are not."""
    monkeypatch.setattr(web_jobs, "MOST_DESCRIPTION_BYTES", 200)
    few = {"task": "classify", "labels": ["cat", "dog"], "items": ["https://a.example/1.jpg"] * 100}
    many = few | {"labels": [f"label {number}" for number in range(100)]}

    async def run(token: str) -> list[tuple[int, str | None]]:
        found = []
        async with asking(services, token) as client:
            for body in (few, many):
                async with client.post("/v1/jobs", json=body) as response:
                    found.append((response.status, (await response.json()).get("error", {}).get("param")))
        return found

    with gateway_services(str(tmp_path)) as services:
        assert asyncio.run(run(services.keys.add("mine"))) == [(503, None), (413, "labels")]  # no Redis
        (listed,), _ = services.jobs.store.listed("mine", after=None, limit=9)
    assert (listed.asked.task, listed.asked.labels) == ("classify", None), "a list of jobs holds no labels"
