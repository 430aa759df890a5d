-- The part of a chunk is in place. ARGV: job, chunk, token, generation, ok, failed, rows that were run for it,
-- how many of those failed, ttl_ms of a job that ends, whether somebody had it before ('1'), what was measured ('' for
-- nothing, see measured.lua), code, count, ... Whoever wrote or found the part may say so, lease or not: there is
-- exactly one part.
-- Where the rows live here, those that `write_rows` has brought under this token become visible, all at once.
-- Answer: 'done', 'finishing' (done, and it was the last), 'ended' (the same, and the job has ended), 'stopped' (too
-- many rows have failed: the job is cancelled), 'already', 'incomplete' (rows are missing: bring them again), 'stale'
-- (another generation), 'cancelled' or 'missing'.
local job, chunk, token, FIRST_CODE = ARGV[1], ARGV[2], ARGV[3], 12
local state, next_chunk, generation, sealed, staged_chunks, done_chunks, ok, failed, ran, ran_failed, measured,
  result_ttl_ms, outage_since, max_error_rate, has_troubles = unpack(redis.call('HMGET', job_key(job), 'state', 'next_chunk',
  'generation', 'sealed', 'staged_chunks', 'done_chunks', 'ok', 'failed', 'ran', 'ran_failed', 'measured',
  'result_ttl_ms', 'outage_since', 'max_error_rate', 'has_troubles'))
local refused = refusal(job, chunk, ARGV[4], state, next_chunk, generation)
local keeps_rows = result_ttl_ms ~= false  -- a worker has brought them
if keeps_rows and not refused and redis.call('HLEN', pending_key(job, token, ROWS)) ~= ARGV[5] + ARGV[6] then
  return 'incomplete'
end
local waiting = tonumber(measured or '') or 0

local function sum(before, more)
  return string.format('%d', (before or 0) + more)
end

if not refused then
  done_chunks, ok, failed = sum(done_chunks, 1), sum(ok, ARGV[5]), sum(failed, ARGV[6])
  ran, ran_failed = sum(ran, ARGV[7]), sum(ran_failed, ARGV[8])
  redis.call('ZREM', LEASES, lease_name(job, chunk))
  local was_leased = redis.call('HDEL', job_key(job, OWNERS), chunk) == 1
  -- Else it is in neither: a chunk is leased or due, and no other worker has had it since.
  if has_troubles or ARGV[10] == '1' or not was_leased then
    redis.call('ZREM', job_key(job, DUE), chunk)
    redis.call('ZREM', job_key(job, WRITERS), token)
    redis.call('HDEL', job_key(job, TROUBLES), chunk .. ':losses', chunk .. ':failures', chunk .. ':waits')
  end
  redis.call('SETBIT', job_key(job, DONE), chunk, 1)
  -- All at once: a call for each would be half of what this script costs.
  if ARGV[11] == '' then
    redis.call('HSET', job_key(job), 'done_chunks', done_chunks, 'ok', ok, 'failed', failed, 'ran', ran, 'ran_failed',
      ran_failed)
  else
    redis.call('HSET', job_key(job), 'done_chunks', done_chunks, 'ok', ok, 'failed', failed, 'ran', ran, 'ran_failed',
      ran_failed, 'measured', waiting + 1, 'measured:' .. waiting, ARGV[11])
    waiting = waiting + 1
  end
  for i = FIRST_CODE, #ARGV, 2 do redis.call('HINCRBY', job_key(job, CODES), ARGV[i], ARGV[i + 1]) end
  redis.call('XADD', job_key(job, STREAM), 'MAXLEN', '~', 10000, '*', 'chunk', chunk, 'ok', ARGV[5], 'failed', ARGV[6])

  local is_first = done_chunks == '1'  -- in its generation: some keys are new
  local is_last = sealed == '1' and tonumber(done_chunks) >= tonumber(staged_chunks or '0')
  local most_bad = tonumber(max_error_rate or '')
  local is_bad = most_bad and ran_failed / ran > most_bad
  local is_all = not (is_first or is_last or is_bad or keeps_rows or outage_since or ARGV[FIRST_CODE])
  if is_all and waiting < MEASURED_APART and is_kept(job) then return 'done' end
end

-- Rarely:
if refused then
  redis.call('ZREM', job_key(job, WRITERS), token)
  drop_pending(job, token)
  return refused
end

local STEP = 1000  -- Lua passes some thousand values to a call at most

local function move(suffix)
  local pending = redis.call('HGETALL', pending_key(job, token, suffix))
  for i = 1, #pending, STEP do
    redis.call('HSET', job_key(job, suffix), unpack(pending, i, math.min(i + STEP - 1, #pending)))
  end
end

-- Which rows are the chunk's: those from its first index on.
local function note_chunk()
  local first
  for _, index in ipairs(redis.call('HKEYS', pending_key(job, token, ROWS))) do
    first = math.min(first or tonumber(index), tonumber(index))
  end
  redis.call('HSET', job_key(job, CHUNKS), chunk, string.format('%d-%d', first, ARGV[5] + ARGV[6]))
end

-- Chunks end in any order: an id keeps its lowest index.
local function move_ids()
  local pending = redis.call('HGETALL', pending_key(job, token, IDS))
  for i = 1, #pending, STEP do
    local ids, lower = {}, {}
    for j = i, math.min(i + STEP - 1, #pending), 2 do ids[#ids + 1] = pending[j] end
    for n, known in ipairs(redis.call('HMGET', job_key(job, IDS), unpack(ids))) do
      local index = pending[i + 2 * n - 1]
      if not known or tonumber(index) < tonumber(known) then
        lower[#lower + 1] = ids[n]
        lower[#lower + 1] = index
      end
    end
    if lower[1] then redis.call('HSET', job_key(job, IDS), unpack(lower)) end
  end
end

local ENOUGH_ROWS, ENOUGH_SHARE, NAMED_CODES = 1000, 0.1, 3

-- The commonest error codes of the job, for people.
local function leading_codes()
  local flat, codes, words = redis.call('HGETALL', job_key(job, CODES)), {}, {}
  for i = 1, #flat, 2 do codes[#codes + 1] = {name = flat[i], count = tonumber(flat[i + 1])} end
  table.sort(codes, function(a, b) return a.count > b.count or (a.count == b.count and a.name < b.name) end)
  for i = 1, math.min(#codes, NAMED_CODES) do words[i] = codes[i].count .. ' ' .. codes[i].name end
  return table.concat(words, ', ')
end

-- Why the job should not go on, or nil. Its rows are judged once there are a thousand of this generation, or a tenth
-- of those it will have, where that is known and less.
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
