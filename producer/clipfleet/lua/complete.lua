-- The part of a chunk is in place. ARGV: job, chunk, token, generation, ok, failed, rows that were run for it,
-- how many of those failed, ttl_ms of a job that ends, #codes, code, count, ..., #stages, stage, seconds, ..., meters
-- as JSON ('' for none). Whoever wrote or found the part may say so, lease or not: there is exactly one part.
-- Where the rows live here, those that `write_rows` has brought under this token become visible, all at once.
-- Answer: 'done', 'finishing' (done, and it was the last), 'ended' (the same, and the job has ended), 'stopped' (too
-- many rows have failed: the job is cancelled), 'already', 'incomplete' (rows are missing: bring them again), 'stale'
-- (another generation), 'cancelled' or 'missing'.
local job, chunk, token = ARGV[1], ARGV[2], ARGV[3]
local refused = refusal(job, chunk, ARGV[4])
if refused then
  drop_pending(job, token)
  return refused
end
local codes_end = 10 + 2 * tonumber(ARGV[10])
local stages_end = codes_end + 1 + 2 * tonumber(ARGV[codes_end + 1])

-- Sums over the chunks of a generation, in one field: to add up a dozen fields would cost as much as all else here.
-- What held most chunks comes out of a vote of seconds: whoever has more than half of all, with a part of his.
local function sum_of_meters(known)
  local more, sum = cjson.decode(ARGV[stages_end + 1]), cjson.decode(known)
  for name, seconds in pairs(more) do
    if type(seconds) == 'number' then sum[name] = (tonumber(sum[name]) or 0) + seconds end
  end
  if more.held_by and more.held_by ~= sum.held_by then
    local before = sum.held_by and sum.held_by_seconds - more.held_by_seconds or 0
    sum.held_by_seconds = math.abs(before - more.held_by_seconds)
    if before < more.held_by_seconds then sum.held_by = more.held_by end
  end
  return cjson.encode(sum)
end

-- What a chunk adds to its job: how much, by field.
local function gains()
  local gain = {done_chunks = 1, ok = ARGV[5], failed = ARGV[6], ran = ARGV[7], ran_failed = ARGV[8]}
  for i = codes_end + 2, stages_end, 2 do gain['seconds:' .. ARGV[i]] = ARGV[i + 1] end
  return gain
end

local names, gain = {'result_ttl_ms', 'outage_since', 'max_error_rate', 'meters'}, gains()
for name in pairs(gain) do names[#names + 1] = name end
local before = facts_of(job, unpack(names))
local meters = ARGV[stages_end + 1] ~= '' and ARGV[stages_end + 1]
if meters and before.meters then
  local was_added, sum = pcall(sum_of_meters, before.meters)
  if was_added then meters = sum end  -- else a producer has put anything in its place: the sum begins anew
end
local keeps_rows = before.result_ttl_ms ~= false  -- see `lives_here`
if keeps_rows and redis.call('HLEN', pending_key(job, token, ROWS)) ~= ARGV[5] + ARGV[6] then
  return 'incomplete'
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

-- The commonest error codes of a job, for people.
local function leading_codes(job)
  local flat, codes, words = redis.call('HGETALL', job_key(job, CODES)), {}, {}
  for i = 1, #flat, 2 do codes[#codes + 1] = {name = flat[i], count = tonumber(flat[i + 1])} end
  table.sort(codes, function(a, b) return a.count > b.count or (a.count == b.count and a.name < b.name) end)
  for i = 1, math.min(#codes, NAMED_CODES) do words[i] = codes[i].count .. ' ' .. codes[i].name end
  return table.concat(words, ', ')
end

-- Why a job should not go on, or nil. Its rows are judged once there are a thousand of this generation, or a tenth
-- of those it will have, where that is known and less.
local function why_stop(job)
  local rate = tonumber(before.max_error_rate or '')
  if not rate then return nil end
  local ran, failed, enough = number(job, 'ran'), number(job, 'ran_failed'), ENOUGH_ROWS
  if field(job, 'sealed') == '1' then
    enough = math.min(enough, ENOUGH_SHARE * (number(job, 'staged_items') - number(job, 'carried')))
  end
  if ran == 0 or ran < enough or failed / ran <= rate then return nil end
  return string.format('%d of %d rows failed (%.1f %%), more than the error rate of %s that is allowed; failed so far: ' ..
    '%s; `clipfleet retry %s` goes on, with --max-error-rate to allow more', failed, ran, 100 * failed / ran, rate,
    leading_codes(job), job)
end

drop_lease(job, chunk)
redis.call('SETBIT', job_key(job, DONE), chunk, 1)
if keeps_rows then
  note_chunk()
  move(ROWS)
  move(VECTORS)
  move_ids()
  drop_pending(job, token)
end
redis.call('ZREM', job_key(job, DUE), chunk)
redis.call('HDEL', job_key(job, TROUBLES), chunk .. ':losses', chunk .. ':failures', chunk .. ':waits')
if before.outage_since then end_outage(job) end
-- All at once: a call for each would be half of what this script costs.
local sums = {}
for name, more in pairs(gain) do
  sums[#sums + 1] = name
  sums[#sums + 1] = string.format(string.find(name, ':') and '%.6f' or '%.0f', (before[name] or 0) + more)
end
if meters then
  sums[#sums + 1] = 'meters'
  sums[#sums + 1] = meters
end
redis.call('HSET', job_key(job), unpack(sums))
for i = 11, codes_end, 2 do redis.call('HINCRBY', job_key(job, CODES), ARGV[i], ARGV[i + 1]) end
redis.call('XADD', job_key(job, STREAM), 'MAXLEN', '~', 10000, '*', 'chunk', chunk, 'ok', ARGV[5],
  'failed', ARGV[6])
local ending = finish_if_done(job)
local reason = not ending and why_stop(job)
if reason then
  end_job(job, 'cancelled', reason, lives_here(job) and number(job, 'job_ttl_ms') or tonumber(ARGV[9]))
  return 'stopped'
end
if ending == 'ended' then return ending end
local is_first = tonumber(before.done_chunks or '0') == 0  -- in its generation: some keys are new
if ending or is_first or keeps_rows or codes_end > 10 then keep_job(job) else keep_job_hourly(job) end
return ending or 'done'
