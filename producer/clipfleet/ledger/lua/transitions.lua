-- Transitions that several scripts make; prepended to each of them. Key names come from keys.py. Server time only.
-- A job's hash holds: fingerprint state lane model generation staged_chunks staged_items next_chunk
-- sealed source_sum done_chunks ok failed turn outage_since created_ms finished_ms finish_token sweeps_left untold damaged
-- reason brief retry_codes draft_token seconds:<step> max_error_rate; of this generation: carried (rows ready before it) ran
-- ran_failed meters measured measured:<n> (see measured.lua) starved_since starved_ms (see `JobStatus`) has_troubles; and of a
-- job whose rows live in Redis job_ttl_ms result_ttl_ms row_schema
--
-- When its memory is full, Redis refuses a script at its first write, unless that write cannot take memory (ZREM,
-- UNLINK, PEXPIRE): then the rest of the script passes, too. So no script is refused halfway, and scripts that free
-- memory or continue what was begun start with such a write.

local REFRESH_MS = 3600 * 1000

-- What `find` returns for a job; nil if a producer has replaced one of its keys by one of another kind. That must not
-- stop the work for all others. Every other error is raised.
local function found_of(job, find)
  local has_worked, found = pcall(find, job)
  if has_worked then return found end
  local message = type(found) == 'table' and found.err or found
  if not string.find(message, 'WRONGTYPE', 1, true) then error(found) end
  return nil
end

-- Whether a text is a number as the scripts write it: digits, few enough for arithmetic and dates. `tonumber` also takes
-- hex, spaces, fractions and infinity.
local function is_count(text)
  return text and text ~= '' and #text < 15 and not string.find(text, '%D')
end

-- Stop the script: the job `at_hand` is damaged. guard.lua continues without that job.
local function damaged(what)
  error({err = 'DAMAGED ' .. what})
end

-- The queue in which claims find a job that has work.
local function queue_of(job)
  local facts = redis.call('HMGET', job_key(job), 'lane', 'model')
  local queue = lane_queue(facts[1] or '', facts[2] or '')
  queue_at_hand = queue
  return queue
end

local function field(job, name)
  return redis.call('HGET', job_key(job), name)
end

-- The whole job as JSON: a key of its own; earlier versions had it in the hash.
local function spec_of(job)
  return redis.call('GET', job_key(job, SPEC)) or field(job, 'spec')
end

local function number(job, name)
  local text = field(job, name) or '0'
  if not is_count(text) then damaged(name) end
  return tonumber(text)
end

-- Several fields of a job by name, in one call; false for each that is missing.
local function facts_of(job, ...)
  local facts, names = {}, {...}
  for i, value in ipairs(redis.call('HMGET', job_key(job), ...)) do facts[names[i]] = value end
  return facts
end

-- Whether the rows of a job live in this Redis; the submit has set how long.
local function lives_here(job)
  return field(job, 'result_ttl_ms') ~= false
end

-- The last step of every script that writes a job: renew the time to live of its keys and of the shared ones. Neither its
-- lane nor the leases of its chunks may expire before it.
local function keep_job(job, ttl_ms)
  for _, suffix in ipairs(JOB_SUFFIXES) do
    redis.call('PEXPIRE', job_key(job, suffix), ttl_ms or KEEP_MS)
  end
  if lives_here(job) then
    local result_ttl_ms = ttl_ms and number(job, 'result_ttl_ms') or KEEP_MS
    for _, suffix in ipairs(RESULT_SUFFIXES) do redis.call('PEXPIRE', job_key(job, suffix), result_ttl_ms) end
  end
  for _, key in ipairs({JOBS, COUNTED, TURNS, LEASES, FINISHING, queue_of(job)}) do keep(key) end
end

-- Whether `keep_job` may be skipped: for scripts that run for every chunk, where it would be most of the cost. Such a
-- script calls `keep` for each key that it may have created.
local function is_kept(job)
  return redis.call('PTTL', job_key(job)) >= KEEP_MS - REFRESH_MS
end

local function is_claimable(state)
  return state == 'submitting' or state == 'running'
end

local function is_final(state)
  return state == 'completed' or state == 'completed_with_errors' or state == 'cancelled' or state == 'failed'
end

-- Which quota more items would exceed, and its use; nil if none. Without a quota nothing is counted.
local function full_quota(most_items, most_bytes, more_items)
  most_items, most_bytes = tonumber(most_items), tonumber(most_bytes)
  if most_items == 0 and most_bytes == 0 then return nil end
  local items, bytes = more_items, 0
  for _, job in ipairs(redis.call('ZRANGE', COUNTED, 0, -1)) do
    local facts = redis.pcall('HMGET', job_key(job), 'state', 'staged_items', 'ok', 'failed', 'staged_chunks', 'chunk_size')
    if not facts[1] then
      redis.call('ZREM', COUNTED, job)  -- expired, or not a job
    elseif not is_final(facts[1]) and is_count(facts[2]) and is_count(facts[3]) and is_count(facts[4]) then
      -- At most what its chunks can hold: one of the fields may be planted.
      local most = (tonumber(facts[5] or '') or 0) * (tonumber(facts[6] or '') or 0)
      items = items + math.max(0, math.min(facts[2] - facts[3] - facts[4], most))
    end
    if most_bytes > 0 then
      bytes = bytes + (redis.call('MEMORY', 'USAGE', job_key(job, ITEMS), 'SAMPLES', 0) or 0)
    end
  end
  if most_items > 0 and items > most_items then return 'items', items end
  if most_bytes > 0 and bytes > most_bytes then return 'bytes', bytes end
  return nil
end

-- Record that there is work to claim again, or that all has been submitted.
local function end_starving(job)
  local since = field(job, 'starved_since')
  if not since then return end
  local starved_ms = tonumber(field(job, 'starved_ms') or '') or 0
  redis.call('HDEL', job_key(job), 'starved_since')
  redis.call('HSET', job_key(job), 'starved_ms', starved_ms + math.max(0, now_ms() - (tonumber(since) or now_ms())))
end

-- Put a job into its queue, unless it is there; it keeps its turn.
local function offer(job)
  redis.call('ZADD', queue_of(job), 'NX', number(job, 'turn'), job)
end

local function withdraw(job)
  redis.call('ZREM', queue_of(job), job)
end

local function lease_name(job, chunk)
  return job .. ':' .. chunk
end

local function drop_lease(job, chunk)
  redis.call('ZREM', LEASES, lease_name(job, chunk))
  redis.call('HDEL', job_key(job, OWNERS), chunk)
end

local function owns(job, chunk, token)
  return redis.call('HGET', job_key(job, OWNERS), chunk) == token
end

local function count_trouble(job, chunk, kind)
  local name = chunk .. ':' .. kind
  if not is_count(redis.call('HGET', job_key(job, TROUBLES), name) or '0') then damaged('troubles: no count of ' .. name) end
  local times = redis.call('HINCRBY', job_key(job, TROUBLES), name, 1)
  redis.call('HSET', job_key(job), 'has_troubles', 1)
  return times
end

-- End the lease of a chunk; it may be claimed once it is due.
local function release_chunk(job, chunk, due_ms)
  drop_lease(job, chunk)
  redis.call('ZADD', job_key(job, DUE), due_ms, chunk)
  if is_claimable(field(job, 'state')) then offer(job) end
end

-- first_ms at first, doubled each further time, at most most_ms.
local function back_off_ms(first_ms, times, most_ms)
  return math.min(most_ms, first_ms * 2 ^ math.min(20, times - 1))
end

-- A failing chunk or worker may need minutes; after an outage of a store, work should resume soon.
local MOST_BACK_OFF_MS, MOST_WAIT_MS = 300000, 60000

-- Record that a chunk has come through: the outage is over.
local function end_outage(job)
  if redis.call('HDEL', job_key(job), 'outage_since') == 1 and is_claimable(field(job, 'state')) then
    redis.call('HSET', job_key(job), 'reason', '')
  end
end

-- Record an outage that blocks a job. Answer: whether it has lasted for more than outage_ms.
local function note_outage(job, reason, outage_ms)
  local now = now_ms()
  redis.call('HSETNX', job_key(job), 'outage_since', now)
  redis.call('HSET', job_key(job), 'reason', reason)
  local since = number(job, 'outage_since')
  if since > now then redis.call('HSET', job_key(job), 'outage_since', now) end  -- the clock was put back
  return now - since > outage_ms
end

-- Record a worker that has lost its lease and may still be inside the write of a part: an overwrite waits for it
-- (writers.lua). Rows in Redis have no such writes. Workers that were silent for two hours are removed, a few at a time.
local FORGET_WRITER_MS = 7200000

local function note_writer(job, token, deadline_ms)
  if lives_here(job) then return end
  for _, old in ipairs(redis.call('ZRANGEBYSCORE', job_key(job, WRITERS), '-inf', now_ms() - FORGET_WRITER_MS, 'LIMIT', 0, 10)) do
    redis.call('ZREM', job_key(job, WRITERS), old)
  end
  redis.call('ZADD', job_key(job, WRITERS), deadline_ms, token)
end

-- Remove the rows that a worker has stored of a chunk and will not complete.
local function drop_pending(job, token)
  for _, suffix in ipairs(PENDING_SUFFIXES) do redis.call('UNLINK', pending_key(job, token, suffix)) end
end

-- Why the ledger takes no rows of a chunk that was claimed in a generation; nil if it does.
local function refusal(job, chunk, claimed_in, state, next_chunk, generation)
  if not state or tonumber(chunk) >= tonumber(next_chunk or '0') then return 'missing' end
  if state == 'cancelled' or state == 'failed' then return 'cancelled' end
  if generation ~= claimed_in then return 'stale' end
  if state == 'completed' then return 'already' end
  if redis.call('GETBIT', job_key(job, DONE), chunk) == 1 then return 'already' end
  return nil
end

-- Note the end of a job for the user's own Celery task: a worker sends it (claim_announcement).
local function announce(job, state, reason)
  local facts = redis.call('HMGET', job_key(job), 'generation', 'staged_items', 'ok', 'failed')
  local is_json, spec = pcall(cjson.decode, spec_of(job))
  if not is_json or type(spec) ~= 'table' or type(spec.on_finished) ~= 'string' then return end
  local text = cjson.encode({task = spec.on_finished, queue = spec.on_finished_queue, event = {
    job_id = job, state = state, generation = tonumber(facts[1]), total = tonumber(facts[2]),
    ok = tonumber(facts[3]), failed = tonumber(facts[4]), reason = reason, output = spec.output}})
  redis.call('ZADD', ANNOUNCEMENTS, now_ms(), text)
  keep(ANNOUNCEMENTS)
  redis.call('HSET', job_key(job), 'untold', 1)
end

-- Whether no list of jobs shows a job: it is a step of an evaluation, a search, a replay or a request.
local function is_unnamed(job)
  for _, name in ipairs(UNNAMED) do
    local rest = string.sub(job, #name + 2)
    local is_ours = string.sub(job, 1, #name + 1) == name .. '-' and string.match(rest, '^%x+%-?%x*$')
    if is_ours and (#rest == 16 or #rest == 23) then return true end
  end
  return false
end

-- Tell the endpoints of webhooks of the end of a job.
local JOB_EVENTS = {completed = 'job.completed', completed_with_errors = 'job.completed', failed = 'job.failed',
  cancelled = 'job.cancelled'}

local function publish_end(job, state, reason)
  local endpoints = not is_unnamed(job) and all_endpoints() or {}
  if not endpoints[1] then return end
  local facts = redis.call('HMGET', job_key(job), 'generation', 'staged_items', 'ok', 'failed', 'created_ms')
  local is_json, spec = pcall(cjson.decode, spec_of(job))
  local data = cjson.encode({job_id = job, state = state, generation = tonumber(facts[1]), total = tonumber(facts[2]),
    ok = tonumber(facts[3]), failed = tonumber(facts[4]), reason = reason,
    output = is_json and type(spec) == 'table' and spec.output or cjson.null})
  local event = 'evt-job-' .. string.sub(redis.sha1hex(job .. ':' .. tostring(facts[5])), 1, 16) .. '-' .. tostring(facts[1])
  put_events(endpoints, {{id = event, kind = JOB_EVENTS[state], policy = '', data = data}}, now_ms())
end

-- Order sweeps, in which any worker removes the scratch files of killed ones: at once if no finishing has done so, and
-- once more when late workers have stopped.
local SWEEP_AGAIN_MS = 120000

local function order_sweeps(job, state)
  if lives_here(job) then return end
  local is_finished = state == 'completed' or state == 'completed_with_errors'
  redis.call('HSET', job_key(job), 'sweeps_left', is_finished and 1 or 2)
  redis.call('ZADD', SWEEPS, now_ms() + (is_finished and SWEEP_AGAIN_MS or 0), job)
  keep(SWEEPS)
end

-- Rewrite a small ended job, so that the server frees the room that it reserves in a stream and a hash: there may be many
-- small jobs, and they are kept for a week. The meters of so few rows mean nothing (`limit_of`).
local SMALL_CHUNKS, SMALL_HASH, MEASURED_ROWS = 16, 200, 16

local function make_small(job)
  local staged_chunks, ran = unpack(redis.call('HMGET', job_key(job), 'staged_chunks', 'ran'))
  if not (is_count(staged_chunks) and tonumber(staged_chunks) <= SMALL_CHUNKS) then return end
  if is_count(ran) and tonumber(ran) < MEASURED_ROWS then redis.call('HDEL', job_key(job), 'meters') end
  local flat = redis.call('HGETALL', job_key(job))
  if #flat <= 2 * SMALL_HASH then
    redis.call('UNLINK', job_key(job))
    redis.call('HSET', job_key(job), unpack(flat))
  end
  -- A copy has no reserved room. If the server forbids COPY, the stream is not changed.
  local stream, copy = job_key(job, STREAM), job_key(job, STREAM .. ':copy')
  redis.pcall('COPY', stream, copy, 'REPLACE')
  redis.pcall('COPY', copy, stream, 'REPLACE')
  redis.call('UNLINK', copy)
end

-- Bring a job into a final state: one event per job and generation, however often it is called. The state comes last: if
-- a key of another kind stops this, it is repaired, and all of this runs again.
local function end_job(job, state, reason, ttl_ms)
  withdraw(job)
  local owners, now, finisher = redis.call('HGETALL', job_key(job, OWNERS)), now_ms(), field(job, 'finish_token')
  if finisher then note_writer(job, finisher, redis.call('ZSCORE', FINISHING, job) or now) end
  redis.call('ZREM', FINISHING, job)
  for i = 1, #owners, 2 do
    local lease = lease_name(job, owners[i])
    note_writer(job, owners[i + 1], redis.call('ZSCORE', LEASES, lease) or now)
    redis.call('ZREM', LEASES, lease)
    drop_pending(job, owners[i + 1])
  end
  if state == 'cancelled' or state == 'failed' then
    redis.call('SET', EARLY_END, job .. ':' .. now, 'PX', KEEP_MS)  -- workers that hold chunks of it check at once
  end
  -- After an outage these hold every chunk of a large job: UNLINK does not block the server.
  redis.call('UNLINK', job_key(job, DUE), job_key(job, OWNERS), job_key(job, TROUBLES), job_key(job, SETTLED))
  local keeps_rows = lives_here(job)
  if state == 'completed' then  -- else a retry reads them again
    redis.call('UNLINK', job_key(job, ITEMS), job_key(job, DONE))
    if keeps_rows then redis.call('UNLINK', job_key(job, STAGED), job_key(job, CHUNKS)) end
  end
  add_up_measured(job)
  if not keeps_rows or state == 'completed' then redis.call('ZREM', COUNTED, job) end
  redis.call('XADD', job_key(job, STREAM), 'MAXLEN', '~', 10000, '*', 'state', state)
  announce(job, state, reason)
  publish_end(job, state, reason)
  order_sweeps(job, state)
  -- Rows in Redis are found through the job: it is kept as long as they are.
  ttl_ms = math.max(ttl_ms, number(job, 'result_ttl_ms'))
  redis.call('XADD', EVENTS, 'MAXLEN', '~', 100000, '*', 'job_id', job, 'generation', number(job, 'generation'),
    'state', state, 'ok', number(job, 'ok'), 'failed', number(job, 'failed'), 'reason', reason)
  keep(EVENTS)
  redis.call('HSET', job_key(job), 'state', state, 'reason', reason, 'finished_ms', now_ms())
  redis.call('HDEL', job_key(job), 'finish_token')
  make_small(job)
  keep_job(job, ttl_ms)
end

local function complete_state(job)
  return number(job, 'failed') == 0 and 'completed' or 'completed_with_errors'
end

-- If all chunks of a sealed job are complete, have the job finished; end it if its rows live in Redis.
-- Answer: 'finishing', 'ended', or nil if chunks are left.
local function finish_if_done(job)
  local facts = facts_of(job, 'state', 'sealed')
  if facts.sealed ~= '1' or is_final(facts.state) or facts.state == 'finishing' then return nil end
  if number(job, 'done_chunks') < number(job, 'staged_chunks') then return nil end
  if lives_here(job) then
    end_job(job, complete_state(job), '', number(job, 'job_ttl_ms'))
    return 'ended'
  end
  withdraw(job)
  add_up_measured(job)
  redis.call('ZADD', FINISHING, now_ms(), job)
  redis.call('HSET', job_key(job), 'state', 'finishing')
  return 'finishing'
end

-- A draft expires after a day, so that a retry or rebuild that died leaves nothing behind.
local DRAFT_SUFFIXES = {DRAFT, DRAFT_DONE, DRAFT_DUE, DRAFT_STAGED}

local function keep_draft(job)
  for _, suffix in ipairs(DRAFT_SUFFIXES) do redis.call('PEXPIRE', job_key(job, suffix), 86400 * 1000) end
end

local function forget_draft(job)
  for _, suffix in ipairs(DRAFT_SUFFIXES) do redis.call('UNLINK', job_key(job, suffix)) end
end

-- Stop the script, before its first write, if a key of the draft is of another kind.
local function check_draft(job)
  redis.call('GETBIT', job_key(job, DRAFT_DONE), 0)
  redis.call('ZCARD', job_key(job, DRAFT_DUE))
  redis.call('ZCARD', job_key(job, DRAFT_STAGED))
end

-- Put the draft of a job in place; no worker holds a chunk of it. ARGV[from]: next_chunk, ok, failed (rows of the chunks
-- that are done), code, count, ...
local function apply_draft(job, from)
  redis.call('UNLINK', job_key(job, DONE), job_key(job, DUE), job_key(job, OWNERS), job_key(job, TROUBLES),
    job_key(job, SETTLED), job_key(job, CODES))
  redis.call('HDEL', job_key(job), 'starved_since', 'starved_ms', 'meters', 'measured', 'has_troubles')
  for draft, suffix in pairs({[DRAFT_DONE] = DONE, [DRAFT_DUE] = DUE}) do
    if redis.call('EXISTS', job_key(job, draft)) == 1 then
      redis.call('RENAME', job_key(job, draft), job_key(job, suffix))
    end
  end
  redis.call('HSET', job_key(job), 'next_chunk', ARGV[from], 'ok', ARGV[from + 1], 'failed', ARGV[from + 2],
    'done_chunks', redis.call('BITCOUNT', job_key(job, DONE)), 'carried', ARGV[from + 1] + ARGV[from + 2],
    'ran', 0, 'ran_failed', 0,
    'draft_token', redis.call('GET', job_key(job, DRAFT)))
  for i = from + 3, #ARGV, 2 do redis.call('HSET', job_key(job, CODES), ARGV[i], ARGV[i + 1]) end
  forget_draft(job)
end

-- Hand out a job whose draft is in place, or have it finished if nothing is left to do.
local function go_on(job)
  redis.call('ZADD', COUNTED, number(job, 'created_ms'), job)
  offer(job)
  redis.call('XADD', job_key(job, STREAM), 'MAXLEN', '~', 10000, '*', 'state', field(job, 'state'))
  if finish_if_done(job) ~= 'ended' then keep_job(job) end
end
