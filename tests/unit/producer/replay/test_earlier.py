"""The policy of a moderation job is read back with its heads."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfleet.errors import UsageError
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.replay.earlier import policy_of_job
from tests.support.heads import head_file
from tests.support.jobs import make_job
from tests.support.policies import make_policy, moderation_job

HEAD = head_file(4, 2)
POLICY = make_policy(heads=(HEAD.of_job,))


@pytest.fixture
def output(tmp_path: Path) -> FolderOutput:
    return FolderOutput(tmp_path)


def test_with_the_heads_of_its_output(output: FolderOutput) -> None:
    assert output.create(objects.head_file(HEAD.of_job.sha256), HEAD.data)

    found = policy_of_job(moderation_job(POLICY), output)

    assert found.policy == POLICY
    assert [one.data for one in found.heads] == [HEAD.data]


def test_a_head_at_hand_need_not_be_there(output: FolderOutput) -> None:
    found = policy_of_job(moderation_job(POLICY), output, [head_file(4, 2, seed=1), HEAD])

    assert [one.data for one in found.heads] == [HEAD.data]


def test_a_head_that_is_gone(output: FolderOutput) -> None:
    with pytest.raises(UsageError, match=r"head 'taste', is gone: give the policy .* `against=`"):
        policy_of_job(moderation_job(POLICY), output)


def test_a_job_without_a_policy(output: FolderOutput) -> None:
    with pytest.raises(UsageError, match="has no policy"):
        policy_of_job(make_job(), output)
