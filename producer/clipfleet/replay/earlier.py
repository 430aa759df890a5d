"""The policy of a moderation job, as its output holds it."""

from __future__ import annotations

from collections.abc import Iterable

from clipfleet.contract.jobs import Job
from clipfleet.contract.policies import Policy
from clipfleet.errors import UsageError
from clipfleet.heads.files import HeadFile, parse_head
from clipfleet.moderation.policy_files import PolicyFile
from clipfleet.outputs import Output, objects


def policy_of_job(job: Job, output: Output, known: Iterable[HeadFile] = ()) -> PolicyFile:
    """Read the policy of a moderation job, with its heads.

    Args:
        job: the job.
        output: its output.
        known: heads that need not be there: Redis keeps none of a job that has ended.

    Raises:
        UsageError: the job has none, or the file of a head is gone or damaged.
        WorldError: the output is unavailable.
    """
    policy = Policy.of_job(job)
    if policy is None:
        raise UsageError(f"{output.uri}: job {job.job_id} has no policy")
    heads, at_hand = [], {one.of_job.sha256: one for one in known}
    for one in job.heads:
        if one.sha256 in at_hand:
            heads.append(at_hand[one.sha256])
            continue
        where = f"{output.uri}/{objects.head_file(one.sha256)}"
        data = output.read(objects.head_file(one.sha256))
        if data is None:
            raise UsageError(
                f"{where}, the file of head {one.name!r}, is gone: give the policy of this job as `against=`"
            )
        heads.append(parse_head(data, where))
    return PolicyFile(policy, tuple(heads))
