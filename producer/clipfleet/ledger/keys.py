"""The names of all Redis keys, and of all objects of an output."""

from __future__ import annotations

from clipfleet.contract.job_names import UNNAMED_PREFIXES

PREFIX = "clipfleet"
SECRETS_PREFIX = "clipfleet-secret"  # of its own, so that a user of Redis may write below it and not read
QUEUE = "clipfleet"  # the Celery queue that carries hints
WORK_TASK = "clipfleet.work"
FINISH_TASK = "clipfleet.finish_job"

# --- Redis: one of each ---

JOBS = f"{PREFIX}:jobs"  # zset: job id -> creation time, ms
LEASES = f"{PREFIX}:leases"  # zset: "<job>:<chunk>" -> deadline, ms
FINISHING = f"{PREFIX}:finishing"  # zset: job id -> time from which it may be claimed, ms
EVENTS = f"{PREFIX}:events"  # stream: one entry per (job, generation) that ended
SWEEPS = f"{PREFIX}:sweeps"  # zset: ended job -> time from which its output may be swept, ms
ANNOUNCEMENTS = f"{PREFIX}:announcements"  # zset: an ended job as JSON -> time from which it may be sent, ms
RECONCILED = f"{PREFIX}:reconciled"  # string: time of the last reconcile, ms
BACKLOG = f"{PREFIX}:backlog"  # string: the last backlog of all jobs, as JSON
# String: the last job that was cancelled or failed, and when: workers poll it.
EARLY_END = f"{PREFIX}:early-end"
TURNS = f"{PREFIX}:turns"  # counter: orders the jobs of a lane, and counts claims for ageing
# Counter: jobs that have failed because their keys were damaged.
QUARANTINED = f"{PREFIX}:quarantined"
WALKED = f"{PREFIX}:walked"  # string: rank in `JOBS` at which the next reconcile continues its check
COUNTED = (
    f"{PREFIX}:counted"  # zset: job that is unfinished, or has staged items in Redis -> creation time, ms
)
DECISIONS = f"{PREFIX}:decisions"  # stream: the last decisions of moderation jobs
WEBHOOKS = f"{PREFIX}:webhooks"  # hash: endpoint id -> JSON, see `Endpoint`
WEBHOOKS_OFF = f"{PREFIX}:webhooks-off"  # hash: endpoint id -> why nothing is delivered to it
# Hash: endpoint id -> time of the last claim of one of its deliveries, microseconds.
WEBHOOK_TURNS = f"{PREFIX}:webhook-turns"
WEBHOOK_TROUBLE = f"{PREFIX}:webhook-trouble"  # hash: endpoint id -> error of its last attempt
WORKERS = f"{PREFIX}:workers"  # zset: worker id -> time of its last heartbeat, ms
WORKER_FACTS = f"{PREFIX}:worker-facts"  # hash: worker id -> JSON (host, pid, models)


def lane_queue(lane: str, model: str) -> str:
    """Name of the zset of the jobs of a lane and model that have chunks to claim: job id -> turn."""
    return f"{PREFIX}:lane:{lane}:{model}"


def claim_token(token: str) -> str:
    """Name of the string with the chunk that this token claimed: a repeated claim gets the same answer."""
    return f"{PREFIX}:token:{token}"


def lock(name: str) -> str:
    """Name of the string with the token of a lock's holder."""
    return f"{PREFIX}:lock:{name}"


def spent(name: str) -> str:
    """Name of the string with the items that a key of the gateway has asked for today."""
    return f"{PREFIX}:spent:{name}"


def act(name: str, act: str) -> str:
    """Name of the string with the items that an act of a key of the gateway has been counted with."""
    return f"{PREFIX}:act:{name}:{act}"


def text_matrix(model_fingerprint: str, label_set_hash: str, suffix: str = "") -> str:
    """Name of the string with an encoded label set that workers share; suffix `:lock`: its encoder."""
    return f"{PREFIX}:text-matrix:{model_fingerprint}:{label_set_hash}{suffix}"


def published(event_id: str) -> str:
    """Name of the string that is there if an event was published, for a week."""
    return f"{PREFIX}:published:{event_id}"


def deliveries(token: str) -> str:
    """Name of the list of the deliveries that this token has claimed, each as endpoint id, event id."""
    return f"{PREFIX}:deliveries:{token}"


# --- Redis: per endpoint of webhooks ---


def webhook(endpoint_id: str, suffix: str) -> str:
    """Name of a key of an endpoint, see `WEBHOOK_SUFFIXES`."""
    return f"{PREFIX}:webhook:{endpoint_id}{suffix}"


def webhook_secrets(endpoint_id: str) -> str:
    """Name of the hash of the secrets of an endpoint: secret id -> secret. Only workers read it."""
    return f"{SECRETS_PREFIX}:{endpoint_id}"


PENDING = ":pending"  # zset: event id -> time from which it may be delivered, or the end of its lease, ms
FAILED = ":failed"  # zset: event id -> when its last attempt failed, ms
ATTEMPTS = ":attempts"  # hash: event id -> failed attempts
HOLDERS = ":holders"  # hash: event id -> token of its lease
ERRORS = ":errors"  # hash: event id -> error of its last attempt
WEBHOOK_SUFFIXES = (PENDING, FAILED, ATTEMPTS, HOLDERS, ERRORS)


def event(event_id: str) -> str:
    """Name of the hash of an event that endpoints have yet to get, or failed to get.

    `body` is its type, its time in ms and its data as JSON, a line each; `held` is for how many endpoints.
    """
    return f"{PREFIX}:event:{event_id}"


# --- Redis: per job (the braces avoid clashes with the names above, whatever the job is called) ---


def job(job_id: str, suffix: str = "") -> str:
    """Name of the hash of a job (no suffix), or of one of its other keys, see `JOB_SUFFIXES`."""
    return f"{PREFIX}:{{{job_id}}}{suffix}"


SPEC = ":spec"  # string: the whole job as JSON
STAGED = ":staged"  # zset: "<first_chunk>-<chunks>" of each staged file -> first chunk
DUE = ":due"  # zset: chunk that was released or lost -> time from which it may be claimed, ms
OWNERS = ":owners"  # hash: leased chunk -> token of its owner
# Zset: token that lost its lease, and may still be inside a write -> its deadline, ms.
WRITERS = ":writers"
TROUBLES = ":troubles"  # hash: "<chunk>:losses|failures|waits" -> count
CODES = ":codes"  # hash: error code -> failed rows
STREAM = ":stream"  # stream: one entry per finished chunk, and one for the end
DONE = ":done"  # bitmap: the bit of a chunk is set once it is complete in the current generation
# Hash: token of a lease -> "<chunk> <settled items> <what is done now>", for people who watch.
SETTLED = ":settled"
# Hash: chunk -> the last generation whose decisions were announced, of a moderation job. It outlives a retry.
DECIDED = ":decided"
ITEMS = ":items"  # hash, of a redis:// job only: object name -> bytes of a head, or of staged items

# The draft of a retry or rebuild, before it is put in place.
DRAFT = ":draft"  # string: token of the last retry or rebuild that began
DRAFT_DONE = ":draft-done"  # will be `DONE`
DRAFT_DUE = ":draft-due"  # will be `DUE`
DRAFT_STAGED = ":draft-staged"  # will be `STAGED`
JOB_SUFFIXES = (
    "", SPEC, STAGED, DUE, OWNERS, WRITERS, TROUBLES, CODES, STREAM, DONE, SETTLED, DECIDED, ITEMS,
    DRAFT, DRAFT_DONE, DRAFT_DUE, DRAFT_STAGED,
)  # fmt: skip

# --- Redis: the results of a redis:// job, with a time to live of their own ---

ROWS = ":rows"  # hash: item_index -> row as JSON
VECTORS = ":vectors"  # hash: item_index -> vector as little-endian float16
IDS = ":ids"  # hash: item_id -> first item_index that has it
CHUNKS = ":chunks"  # hash: complete chunk -> "<first item_index>-<rows>"; their lengths differ
PENDING_SUFFIXES = (ROWS, VECTORS, IDS)
RESULT_SUFFIXES = (*PENDING_SUFFIXES, CHUNKS)


def pending(job_id: str, token: str, suffix: str) -> str:
    """Name of the rows that a worker has written; `complete` moves them. See `PENDING_SUFFIXES`."""
    return job(job_id, f":pending:{token}{suffix}")


def lua_prelude() -> str:
    """The same names as local variables of a Lua script: no script contains the name of a key."""
    names = (
        "JOBS", "LEASES", "FINISHING", "EVENTS", "TURNS", "RECONCILED", "BACKLOG", "EARLY_END", "SWEEPS",
        "ANNOUNCEMENTS", "QUARANTINED", "WALKED", "COUNTED", "WORKERS", "WORKER_FACTS", "SPEC", "STAGED",
        "DUE", "OWNERS", "WRITERS", "TROUBLES", "CODES", "STREAM", "DONE", "SETTLED", "DECIDED", "ITEMS",
        "ROWS", "VECTORS", "IDS", "CHUNKS", "DRAFT", "DRAFT_DONE", "DRAFT_DUE", "DRAFT_STAGED", "DECISIONS",
        "WEBHOOKS", "WEBHOOKS_OFF", "WEBHOOK_TROUBLE", "WEBHOOK_TURNS", "PENDING", "FAILED",
        "ATTEMPTS", "HOLDERS", "ERRORS",
    )  # fmt: skip
    lines = [f"local {name} = '{globals()[name]}'" for name in names]
    job_key, lane_key = job(_spliced("job")), lane_queue(_spliced("lane"), _spliced("model"))
    pending_key = pending(_spliced("job"), _spliced("token"), _spliced("suffix"))
    lines += [
        f"local function job_key(job, suffix) return '{job_key}' .. (suffix or '') end",
        f"local function lane_queue(lane, model) return '{lane_key}' end",
        f"local function token_key(token) return '{claim_token(_spliced('token'))}' end",
        f"local function pending_key(job, token, suffix) return '{pending_key}' end",
        f"local function lock_key(name) return '{lock(_spliced('name'))}' end",
        f"local function spent_key(name) return '{spent(_spliced('name'))}' end",
        f"local function act_key(name, act) return '{act(_spliced('name'), _spliced('act'))}' end",
        f"local function published_key(event_id) return '{published(_spliced('event_id'))}' end",
        f"local function deliveries_key(token) return '{deliveries(_spliced('token'))}' end",
        f"local function webhook_key(id, suffix) return '{webhook(_spliced('id'), _spliced('suffix'))}' end",
        f"local function secrets_key(id) return '{webhook_secrets(_spliced('id'))}' end",
        f"local function event_key(id) return '{event(_spliced('id'))}' end",
        f"local WEBHOOK_SUFFIXES = {_lua_list(WEBHOOK_SUFFIXES)}",
        f"local UNNAMED = {_lua_list(UNNAMED_PREFIXES)}",
        f"local JOB_SUFFIXES = {_lua_list(JOB_SUFFIXES)}",
        f"local PENDING_SUFFIXES = {_lua_list(PENDING_SUFFIXES)}",
        f"local RESULT_SUFFIXES = {_lua_list(RESULT_SUFFIXES)}",
    ]
    return "\n".join(lines)


def _lua_list(values: tuple[str, ...]) -> str:
    return "{" + ", ".join(f"'{value}'" for value in values) + "}"


def _spliced(variable: str) -> str:
    """A Lua variable inside a string in single quotes."""
    return f"' .. {variable} .. '"
