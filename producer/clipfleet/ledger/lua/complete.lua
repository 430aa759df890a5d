-- Mark a chunk complete: its part is in place. ARGV: job, chunk, token, generation, ok, failed, rows that were run for
-- it, how many of those failed, ttl_ms of a job that ends, '1' if the chunk was claimed before, what was measured ('' for
-- nothing, see measured.lua), how many decisions ('' for a job that announces none), then of each its status, event id,
-- policy and record; code, count, ...
-- The decisions are announced in the same step. No lease is needed: there is exactly one part, whoever wrote or found it.
-- Rows that `write_rows` has stored under this token become visible, all at once.
-- Answer: 'done', 'finishing' (done, and it was the last), 'ended' (the same, and the job has ended), 'stopped' (too
-- many rows have failed: the job is cancelled), 'already', 'incomplete' (rows are missing: write them again), 'stale'
-- (another generation), 'cancelled' or 'missing'.
-- A job that cannot be read fails instead, see guard.lua: everything is checked before the first write, and the writes
-- begin with the keys that may be of another kind.
local job, chunk, token, decisions = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[12])
local FIRST_CODE = 13 + 4 * (decisions or 0)
at_hand = job
local state, next_chunk, generation, sealed, staged_chunks, done_chunks, ok, failed, ran, ran_failed, measured,
  result_ttl_ms, outage_since, max_error_rate, has_troubles = unpack(redis.call('HMGET', job_key(job), 'state', 'next_chunk',
  'generation', 'sealed', 'staged_chunks', 'done_chunks', 'ok', 'failed', 'ran', 'ran_failed', 'measured',
  'result_ttl_ms', 'outage_since', 'max_error_rate', 'has_troubles'))
local refused = refusal(job, chunk, ARGV[4], state, next_chunk, generation)
local keeps_rows = result_ttl_ms ~= false  -- stored by `write_rows`
local waiting = tonumber(measured or '') or 0

-- A sum as text; raises unless both are numbers.
local function sum(before, more)
  local value = (before or 0) + more
  if not (value >= 0 and value < 1e14) then error({err = 'DAMAGED counts'}) end
  return string.format('%d', value)
end

local first_index
if keeps_rows and not refused then
  local is_whole
  local ttl_ms = redis.call('HGET', job_key(job), 'job_ttl_ms')
  if not (ttl_ms and string.find(ttl_ms .. result_ttl_ms, '^%d+$')) then error({err = 'DAMAGED times to live'}) end
  is_whole, first_index = redis.pcall('HLEN', pending_key(job, token, ROWS)) == ARGV[5] + ARGV[6], math.huge
  if is_whole then
    for _, index in ipairs(redis.call('HKEYS', pending_key(job, token, ROWS))) do
      is_whole = is_whole and #index < 15 and string.find(index, '^%d+$')
      first_index = is_whole and math.min(first_index, tonumber(index))
    end
    local ids = redis.pcall('HGETALL', pending_key(job, token, IDS))
    for i = 2, #ids, 2 do is_whole = is_whole and #ids[i] < 15 and string.find(ids[i], '^%d+$') end
    is_whole = is_whole and not ids.err and type(redis.pcall('HLEN', pending_key(job, token, VECTORS))) ~= 'table'
    if not is_whole then  -- not written by `write_rows`
      redis.call('UNLINK', pending_key(job, token, ROWS), pending_key(job, token, VECTORS), pending_key(job, token, IDS))
    end
  end
  if not is_whole then return 'incomplete' end
  redis.call('HLEN', job_key(job, ROWS))
  redis.call('HLEN', job_key(job, VECTORS))
  redis.call('HLEN', job_key(job, IDS))
  redis.call('HLEN', job_key(job, CHUNKS))
end

if not refused then
  for i = FIRST_CODE, #ARGV, 2 do
    local before = redis.call('HGET', job_key(job, CODES), ARGV[i])
    if before and not string.find(before, '^%d+$') then error({err = 'DAMAGED codes'}) end
  end
  done_chunks, ok, failed = sum(done_chunks, 1), sum(ok, ARGV[5]), sum(failed, ARGV[6])
  ran, ran_failed = sum(ran, ARGV[7]), sum(ran_failed, ARGV[8])
  local is_first = done_chunks == '1'  -- of its generation: some keys are new
  local is_last = sealed == '1' and tonumber(done_chunks) >= tonumber(staged_chunks or '0')
  if has_troubles then  -- another worker may hold the chunk, and be inside its write
    local owner = redis.call('HGET', job_key(job, OWNERS), chunk)
    if owner and owner ~= token then note_writer(job, owner, redis.call('ZSCORE', LEASES, lease_name(job, chunk)) or now_ms()) end
  end
  redis.call('ZREM', LEASES, lease_name(job, chunk))
  if decisions then
    redis.call('HSET', job_key(job, DECIDED), chunk, generation)
    if decisions > 0 then announce_decisions(13, FIRST_CODE - 1) end
  end
  local was_leased = redis.call('HDEL', job_key(job, OWNERS), chunk) == 1
  -- Else the chunk is in none of these: it was leased, so not due, and never released or lost.
  if has_troubles or ARGV[10] == '1' or not was_leased then
    redis.call('ZREM', job_key(job, DUE), chunk)
    redis.call('ZREM', job_key(job, WRITERS), token)
    redis.call('HDEL', job_key(job, TROUBLES), chunk .. ':losses', chunk .. ':failures', chunk .. ':waits')
  end
  redis.call('XADD', job_key(job, STREAM), 'MAXLEN', '~', 10000, '*', 'chunk', chunk, 'ok', ARGV[5], 'failed', ARGV[6])
  redis.call('SETBIT', job_key(job, DONE), chunk, 1)
  -- In one call: one for each field would double the cost of this script.
  if ARGV[11] == '' then
    redis.call('HSET', job_key(job), 'done_chunks', done_chunks, 'ok', ok, 'failed', failed, 'ran', ran, 'ran_failed',
      ran_failed)
  else
    redis.call('HSET', job_key(job), 'done_chunks', done_chunks, 'ok', ok, 'failed', failed, 'ran', ran, 'ran_failed',
      ran_failed, 'measured', waiting + 1, 'measured:' .. waiting, ARGV[11])
    waiting = waiting + 1
  end
  for i = FIRST_CODE, #ARGV, 2 do redis.call('HINCRBY', job_key(job, CODES), ARGV[i], ARGV[i + 1]) end

  local most_bad = tonumber(max_error_rate or '')
  local is_bad = most_bad and ran_failed / ran > most_bad
  local is_all = not (is_first or is_last or is_bad or keeps_rows or outage_since or ARGV[FIRST_CODE])
  if is_all and waiting < MEASURED_APART and is_kept(job) then return 'done' end
end

-- Rarely:
if refused then
  redis.call('ZREM', job_key(job, WRITERS), token)
  drop_pending(job, token)
  if refused == 'already' and owns(job, chunk, token) then damaged('done: chunk ' .. chunk .. ' is both done and leased') end
  -- The call that completed the last chunk may have stopped before this.
  return refused == 'already' and is_claimable(state) and finish_if_done(job) or refused
end

local STEP = 1000  -- Lua passes a few thousand values to a call at most

local function move(suffix)
  local pending = redis.call('HGETALL', pending_key(job, token, suffix))
  for i = 1, #pending, STEP do
    redis.call('HSET', job_key(job, suffix), unpack(pending, i, math.min(i + STEP - 1, #pending)))
  end
end

-- Record the rows of the chunk: those from its first index on.
local function note_chunk()
  redis.call('HSET', job_key(job, CHUNKS), chunk, string.format('%d-%d', first_index, ARGV[5] + ARGV[6]))
end

-- Chunks end in any order: an id keeps its lowest index.
local function move_ids()
  local pending = redis.call('HGETALL', pending_key(job, token, IDS))
  for i = 1, #pending, STEP do
    local ids, lower = {}, {}
    for j = i, math.min(i + STEP - 1, #pending), 2 do ids[#ids + 1] = pending[j] end
    for n, known in ipairs(redis.call('HMGET', job_key(job, IDS), unpack(ids))) do
      local index = pending[i + 2 * n - 1]
      if not is_count(known) or tonumber(index) < tonumber(known) then
        lower[#lower + 1] = ids[n]
        lower[#lower + 1] = index
      end
    end
    if lower[1] then redis.call('HSET', job_key(job, IDS), unpack(lower)) end
  end
end

local ENOUGH_ROWS, ENOUGH_SHARE, NAMED_CODES = 1000, 0.1, 3

-- The most frequent error codes of the job, for its reason.
local function leading_codes()
  local flat, codes, words = redis.call('HGETALL', job_key(job, CODES)), {}, {}
  for i = 1, #flat, 2 do codes[#codes + 1] = {name = flat[i], count = tonumber(flat[i + 1]) or 0} end
  table.sort(codes, function(a, b) return a.count > b.count or (a.count == b.count and a.name < b.name) end)
  for i = 1, math.min(#codes, NAMED_CODES) do words[i] = codes[i].count .. ' ' .. codes[i].name end
  return table.concat(words, ', ')
end

-- Why the job must stop, or nil. Judged once a thousand rows of this generation have been run, or a tenth of those it
-- will have, if that is known and less.
local function why_stop()
  local rate, share, enough = tonumber(max_error_rate or ''), ran_failed / ran, ENOUGH_ROWS
  if sealed == '1' then
    enough = math.min(enough, ENOUGH_SHARE * (number(job, 'staged_items') - number(job, 'carried')))
  end
  if not rate or ran == '0' or tonumber(ran) < enough or share <= rate then return nil end
  return string.format('%d of %d rows failed (%.1f %%), more than the error rate of %s that is allowed; failed so far: ' ..
    '%s; `clipfleet retry %s` goes on, with --max-error-rate to allow more', ran_failed, ran, 100 * share, rate,
    leading_codes(), job)
end

if keeps_rows then
  note_chunk()
  move(ROWS)
  move(VECTORS)
  move_ids()
  drop_pending(job, token)
end
if outage_since then end_outage(job) end
if waiting >= MEASURED_APART then add_up_measured(job) end
local ending = finish_if_done(job)
local reason = not ending and why_stop()
if reason then
  end_job(job, 'cancelled', reason, keeps_rows and number(job, 'job_ttl_ms') or tonumber(ARGV[9]))
  return 'stopped'
end
if ending == 'ended' then return ending end
local is_changed = ending or done_chunks == '1' or keeps_rows or ARGV[FIRST_CODE]
if is_changed or not is_kept(job) then keep_job(job) end
return ending or 'done'
