-- Runs when a script has raised: repair what is damaged, and run the script again; see `guarded_script` of scripts.py.
-- Every client with write access may plant anything. That affects only the job it is planted in: a job that cannot be
-- read is quarantined (it fails), one whose own hash is of another kind is forgotten, and a shared key of another kind
-- is dropped and filled again from the keys of the jobs.
local MOST_MENDED = 1000
local RESTORED_LEASE_MS = 60000  -- their real length is unknown; living workers renew them
local ENDED_MS = 7 * 86400 * 1000  -- how long a quarantined job is kept: the default
local ZSETS = {JOBS, COUNTED, LEASES, FINISHING, SWEEPS, ANNOUNCEMENTS, WORKERS}
-- Messages of commands and of Lua that a value has caused. All others are about the server (its memory, rights, a
-- replica): no job is at fault.
local OF_VALUES = {'WRONGTYPE', 'DAMAGED', 'not an integer', 'not a valid float', 'not a number', 'NaN', 'overflow',
  'out of range', 'possible ID', 'equal or smaller than the target', 'attempt to ', 'bad argument', 'expected',
  'too many results to unpack', 'Cannot serialise'}

local message = type(raised) == 'table' and raised.err or tostring(raised)

local function is_of_values()
  for _, words in ipairs(OF_VALUES) do
    if string.find(message, words, 1, true) then return true end
  end
  return false
end

local function is_of_kind(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == 'none' or found == kind
end

-- Every job that any shared key names, once.
local function known_jobs()
  local jobs, names = {}, {}
  for _, key in ipairs({JOBS, COUNTED, FINISHING, SWEEPS}) do
    for _, job in ipairs(redis.call('ZRANGE', key, 0, -1)) do jobs[job] = true end
  end
  for _, lease in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
    local job = string.match(lease, '^(.+):%d+$')
    if job then jobs[job] = true end
  end
  for job in pairs(jobs) do names[#names + 1] = job end
  table.sort(names)
  return names
end

-- A damaged job is left to the script that meets it.
local function restore_all(lost)
  for _, job in ipairs(known_jobs()) do
    local facts = redis.pcall('HMGET', job_key(job), 'created_ms', 'state', 'untold', 'reason')
    if is_count(facts[1]) then
      if lost[JOBS] then redis.call('ZADD', JOBS, 'NX', facts[1], job) end
      if lost[ANNOUNCEMENTS] and is_final(facts[2]) and facts[3] then pcall(announce, job, facts[2], facts[4] or '') end
      pcall(restore, job, RESTORED_LEASE_MS, 1000000)
    end
  end
end

-- Drop shared keys of another kind, whose values are lost already; true if there were any.
local function mend_shared()
  local lost, zsets = {}, {queue_at_hand or JOBS, unpack(ZSETS)}
  for _, key in ipairs(zsets) do
    if not is_of_kind(key, 'zset') then lost[key] = true end
  end
  if not is_of_kind(EVENTS, 'stream') then lost[EVENTS] = true end
  if not is_of_kind(DECISIONS, 'stream') then lost[DECISIONS] = true end
  for _, key in ipairs({WORKER_FACTS, WEBHOOKS, WEBHOOKS_OFF, WEBHOOK_TROUBLE}) do
    if not is_of_kind(key, 'hash') then lost[key] = true end
  end
  for _, id in ipairs(lost[WEBHOOKS] and {} or redis.call('HKEYS', WEBHOOKS)) do
    for _, suffix in ipairs(WEBHOOK_SUFFIXES) do
      local kind = (suffix == PENDING or suffix == FAILED) and 'zset' or 'hash'
      if not is_of_kind(webhook_key(id, suffix), kind) then lost[webhook_key(id, suffix)] = true end
    end
  end
  for key in pairs(lost) do redis.call('UNLINK', key) end
  if next(lost) then restore_all(lost) end
  return next(lost) ~= nil
end

-- A stream takes no entry after the highest possible ID. The events in it are valid: they stay under another name, if
-- this user may rename a key.
local function mend_stream(job)
  if not string.find(message, 'ID', 1, true) or not string.find(message, 'stream', 1, true) then return false end
  local answer = job and redis.pcall('XADD', job_key(job, STREAM), 'NOMKSTREAM', '*', 'state', '')
  if type(answer) == 'table' and answer.err then return false end  -- it is the job's own stream
  if redis.pcall('RENAME', EVENTS, EVENTS .. ':full').err then redis.call('UNLINK', EVENTS) end  -- a worker may not
  keep(EVENTS .. ':full')
  return true
end

-- Repair the keys of a job as far as possible. Answer: what was wrong, in words, and whether a retry, which replaces most
-- of it, cannot repair the rest.
local function mend(job)
  local found, is_lasting = {}, false
  for suffix, kind in pairs(KINDS) do
    local key = job_key(job, suffix)
    if not is_of_kind(key, kind) then
      local other = redis.call('TYPE', key).ok
      redis.call('UNLINK', key)
      if string.find(suffix, DRAFT, 1, true) then
        forget_draft(job)  -- its retry begins again
      elseif suffix ~= SETTLED then  -- that is only shown
        found[#found + 1] = 'key ' .. suffix .. ' is a ' .. other
        is_lasting = is_lasting or suffix == STAGED or suffix == ITEMS or suffix == SPEC
      end
    end
  end
  local facts = read_fields(job)
  for _, name in ipairs(unreadable_fields(job, facts)) do
    found[#found + 1] = 'field ' .. name .. ' ' .. shown(facts[name])
    is_lasting = is_lasting or LASTING[name] or false
    if name == 'spec' then
      redis.call('SET', job_key(job, SPEC), '', 'PX', ENDED_MS)  -- an ended job keeps its time to live
    else
      redis.call('HSET', job_key(job), name, COUNTS[name] and 0 or name == 'sealed' and 0 or name == 'lane' and 'normal' or
        name == 'state' and 'paused' or facts[name] or '')
    end
    if string.find(name, '_ttl_ms', 1, true) then redis.call('HDEL', job_key(job), 'job_ttl_ms', 'result_ttl_ms') end
  end
  local codes = redis.call('HGETALL', job_key(job, CODES))
  for i = 1, #codes, 2 do
    if not is_count(codes[i + 1]) then
      if #found < 10 then found[#found + 1] = 'code ' .. shown(codes[i]) .. ' of which the count ' .. shown(codes[i + 1]) end
      redis.call('HDEL', job_key(job, CODES), codes[i])
    end
  end
  table.sort(found)
  local chunks = not found[1] and not is_final(facts.state) and wrong_chunks(job, facts)
  if chunks then
    found[1] = chunks
    is_lasting = string.find(chunks, '^staged') ~= nil
  end
  return found, is_lasting
end

-- Drop every lease of a job, also where its owner cannot be read.
local function drop_leases(job)
  for _, lease in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
    if string.match(lease, '^(.*):[^:]*$') == job then redis.call('ZREM', LEASES, lease) end
  end
end

local function fail(job, reason)
  if pcall(end_job, job, 'failed', reason, ENDED_MS) then return end
  mend_shared()  -- the job's own keys are repaired: it was one of these
  mend_stream(job)
  end_job(job, 'failed', reason, ENDED_MS)
end

-- End a job that cannot be read; one that has ended is only repaired.
local function quarantine(job)
  local found, is_lasting = mend(job)
  if string.find(message, '^DAMAGED staged') then is_lasting = true end
  if is_lasting then redis.call('HSET', job_key(job), 'damaged', 1) end
  if not is_final(field(job, 'state')) and (found[1] or not string.find(message, 'WRONGTYPE', 1, true)) then
    local what = found[1] and table.concat(found, ', ', 1, math.min(#found, 3)) or string.gsub(message, '^DAMAGED ', '')
    local way_out = is_lasting and 'submit it again under another --job-id' or '`clipfleet retry` counts anew what its output holds'
    fail(job, 'what Redis holds of this job is damaged: ' .. what .. '; ' .. way_out)
    drop_leases(job)
    count_quarantined()
  end
  redis.call('ZREM', SWEEPS, job)
  redis.call('HSET', job_key(job), 'sweeps_left', 0)
end

local is_quarantined, is_forgotten = {}, {}

-- Repair what made the script raise; raises if there is nothing to repair.
local function repair()
  if not is_of_values() then error(raised) end
  keep(JOBS)  -- so that it works when Redis is full: see transitions.lua
  local job = at_hand
  if mend_shared() or mend_stream(job) then return end
  if not is_quarantined[job] and is_of_kind(job_key(job), 'hash') then
    is_quarantined[job] = true
    if pcall(quarantine, job) then return end
  end
  if is_forgotten[job] then error(raised) end
  is_forgotten[job] = true
  drop_leases(job)
  forget(job)
end

for _ = 1, MOST_MENDED do
  if not pcall(repair) then break end
  has_worked, raised = pcall(body)
  if has_worked then return raised end
  message = type(raised) == 'table' and raised.err or tostring(raised)
end
error(raised)
