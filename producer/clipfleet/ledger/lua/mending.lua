-- Finds and repairs what a producer may have planted in the keys of a job; prepended after transitions.lua.

-- Fields that are counts (`is_count`); `1` if a job without the field is damaged. A retry replaces all of them that are
-- not in LASTING.
local COUNTS = {generation = 1, chunk_size = 1, created_ms = 1, staged_chunks = 1, staged_items = 1, next_chunk = 0,
  done_chunks = 0, ok = 0, failed = 0, carried = 0, ran = 0, ran_failed = 0, turn = 0, outage_since = 0,
  starved_since = 0, finished_ms = 0, sweeps_left = 0, job_ttl_ms = 0, result_ttl_ms = 0}
local TEXTS = {'spec', 'fingerprint', 'model'}  -- the first is a key of its own
local LASTING = {generation = true, chunk_size = true, created_ms = true, staged_chunks = true, staged_items = true,
  job_ttl_ms = true, result_ttl_ms = true, spec = true, fingerprint = true, model = true, lane = true, sealed = true}
local KINDS = {[SPEC] = 'string', [STAGED] = 'zset', [DUE] = 'zset', [OWNERS] = 'hash', [WRITERS] = 'zset', [TROUBLES] = 'hash',
  [CODES] = 'hash',
  [STREAM] = 'stream', [DONE] = 'string', [SETTLED] = 'hash', [DECIDED] = 'hash',
  [ITEMS] = 'hash', [ROWS] = 'hash', [VECTORS] = 'hash', [IDS] = 'hash',
  [CHUNKS] = 'hash', [DRAFT] = 'string', [DRAFT_DONE] = 'string', [DRAFT_DUE] = 'zset', [DRAFT_STAGED] = 'zset'}
local MOST_CHUNK_DIGITS = 4
local MOST_CODES = 1000  -- there are some thirty

local function is_state(text)
  return is_claimable(text) or is_final(text) or text == 'paused' or text == 'finishing'
end

-- A value as shown in a reason.
local function shown(value)
  if not value then return 'is missing' end
  return "is '" .. string.gsub(string.sub(value, 1, 40), '[^\32-\126]', '?') .. (#value > 40 and "...'" or "'")
end

-- Names of the fields of a job that cannot be read, in order.
local function unreadable_fields(job, facts)
  local wrong = {}
  for name, is_needed in pairs(COUNTS) do
    local text = facts[name]
    if (text and not is_count(text)) or (not text and is_needed == 1) then wrong[#wrong + 1] = name end
  end
  for _, name in ipairs(TEXTS) do
    if not facts[name] then wrong[#wrong + 1] = name end
  end
  -- A larger chunk would exceed the memory of the worker that claims it.
  if is_count(facts.chunk_size) and #facts.chunk_size > MOST_CHUNK_DIGITS then wrong[#wrong + 1] = 'chunk_size' end
  if (facts.job_ttl_ms and 1) ~= (facts.result_ttl_ms and 1) then wrong[#wrong + 1] = 'job_ttl_ms' end
  if not is_state(facts.state) then wrong[#wrong + 1] = 'state' end
  if facts.sealed ~= '0' and facts.sealed ~= '1' then wrong[#wrong + 1] = 'sealed' end
  if facts.lane ~= 'high' and facts.lane ~= 'normal' and facts.lane ~= 'bulk' then wrong[#wrong + 1] = 'lane' end
  table.sort(wrong)
  return wrong
end

local function read_fields(job)
  local names = {'state', 'sealed', 'lane', unpack(TEXTS)}
  for name in pairs(COUNTS) do names[#names + 1] = name end
  local facts = facts_of(job, unpack(names))
  facts.spec = spec_of(job)
  return facts
end

-- What is wrong with the chunks of a job whose fields can be read, or nil.
local function wrong_chunks(job, facts)
  local cursor, staged = tonumber(facts.next_chunk or '0'), tonumber(facts.staged_chunks)
  local last = redis.call('ZRANGE', job_key(job, STAGED), -1, -1)[1]
  local first, chunks = string.match(last or '0-0', '^(%d+)-(%d+)$')
  if not first or first + chunks ~= staged then
    return string.format('staged files: the last one %s, and staged_chunks %s', shown(last), shown(facts.staged_chunks))
  end
  if cursor > staged then return 'next_chunk ' .. shown(facts.next_chunk) .. ' of ' .. facts.staged_chunks end
  local is_handed_out = cursor == staged and facts.sealed == '1' and is_claimable(facts.state)
  local waiting, leased = redis.call('ZCARD', job_key(job, DUE)), redis.call('HLEN', job_key(job, OWNERS))
  if is_handed_out and waiting + leased == 0 and tonumber(facts.done_chunks or '0') < staged then
    return string.format('done_chunks %s of %s, and no chunk is left', shown(facts.done_chunks), facts.staged_chunks)
  end
  return nil
end

-- Stop the script, before its first write, unless all keys of a job can be read; see `damaged`. A missing job is not
-- damaged.
local function check(job)
  local facts = read_fields(job)
  if not facts.state and redis.call('EXISTS', job_key(job)) == 0 then return end
  local wrong = unreadable_fields(job, facts)[1]
  if wrong then damaged('field ' .. wrong) end
  -- Each of these raises where the key is of another kind.
  for _, suffix in ipairs({OWNERS, TROUBLES, ITEMS, DECIDED}) do redis.call('HLEN', job_key(job, suffix)) end
  redis.call('ZCARD', job_key(job, DUE))
  redis.call('GETBIT', job_key(job, DONE), 0)
  if facts.result_ttl_ms then
    for _, suffix in ipairs(RESULT_SUFFIXES) do redis.call('HLEN', job_key(job, suffix)) end
  end
  if redis.call('HLEN', job_key(job, CODES)) > MOST_CODES then damaged('codes') end
  local codes = redis.call('HGETALL', job_key(job, CODES))
  for i = 2, #codes, 2 do
    if not is_count(codes[i]) then damaged('codes') end
  end
  local chunks = not is_final(facts.state) and wrong_chunks(job, facts)
  if chunks then damaged(chunks) end
end

local function count_quarantined()
  local before = redis.pcall('GET', QUARANTINED)
  redis.call('SET', QUARANTINED, (is_count(type(before) == 'string' and before) and before or 0) + 1, 'PX', KEEP_MS)
end

-- Remove every trace of a job whose own hash is of another kind: its end cannot be recorded.
local function forget(job)
  local owners = redis.pcall('HKEYS', job_key(job, OWNERS))
  for _, chunk in ipairs(owners) do redis.call('ZREM', LEASES, lease_name(job, chunk)) end
  for _, key in ipairs({JOBS, COUNTED, FINISHING, SWEEPS}) do redis.call('ZREM', key, job) end
  for _, suffix in ipairs(JOB_SUFFIXES) do redis.call('UNLINK', job_key(job, suffix)) end
  count_quarantined()
end

-- Number of claims so far: no turn is later.
local function number_of_turns()
  local turns = redis.pcall('GET', TURNS)
  return type(turns) == 'string' and is_count(turns) and turns or 0
end

-- Put a job back into the shared keys that it belongs to, from its own keys; existing entries are not changed.
-- A damaged job stops the script, see `check`. At most most_owners leases are checked.
local function restore(job, lease_ms, most_owners)
  local state, created_ms, sweeps_left = unpack(redis.call('HMGET', job_key(job), 'state', 'created_ms', 'sweeps_left'))
  if not is_count(created_ms) then damaged('field created_ms') end
  if is_final(state) then
    if is_count(sweeps_left) and sweeps_left ~= '0' then redis.call('ZADD', SWEEPS, 'NX', now_ms(), job) end
    return
  end
  check(job)
  local now = now_ms()
  redis.call('ZADD', COUNTED, 'NX', created_ms, job)
  if state == 'finishing' then redis.call('ZADD', FINISHING, 'NX', now, job) end
  for _, chunk in ipairs(redis.call('HRANDFIELD', job_key(job, OWNERS), most_owners)) do
    if not is_count(chunk) then damaged('owners: one is of no chunk') end
    redis.call('ZADD', LEASES, 'NX', now + lease_ms, lease_name(job, chunk))
  end
  -- The longest back-off: later times are planted.
  local latest = now + MOST_BACK_OFF_MS
  for _, chunk in ipairs(redis.call('ZRANGEBYSCORE', job_key(job, DUE), '(' .. latest, '+inf', 'LIMIT', 0, 1000)) do
    redis.call('ZADD', job_key(job, DUE), latest, chunk)
  end
  if not is_claimable(state) or finish_if_done(job) then return end
  local has_work = number(job, 'next_chunk') < number(job, 'staged_chunks') or redis.call('ZCARD', job_key(job, DUE)) > 0
  if has_work then
    offer(job)
    keep(queue_of(job))
    redis.call('ZADD', queue_of(job), 'XX', 'LT', number_of_turns(), job)
  end
end
