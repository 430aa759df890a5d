-- Count the pending and running work of all jobs. ARGV: keep_ms, most_jobs, '1' to count anew.
-- Answer: JSON, see `Backlog.of_answer`. Counted once in keep_ms: every worker calls this all the time.
-- Only the newest most_jobs are counted; `left_out` is the number of the others.
keep(LEASES)  -- so that it works when Redis is full: see transitions.lua
local counted = redis.pcall('GET', BACKLOG)
if type(counted) == 'string' and ARGV[3] ~= '1' then return counted end
local now, lanes, states = now_ms(), {}, {}
local oldest_due_ms, oldest_outage_ms = now, now

local function amount(text)
  return is_count(text) and tonumber(text) or 0
end

-- Of a claimable job: {queued, leased, done, open items, time since which a chunk is due, time since which its output
-- is unavailable}.
local function work_of(job)
  local facts = redis.call('HMGET', job_key(job), 'staged_chunks', 'next_chunk', 'done_chunks', 'staged_items', 'ok',
    'failed', 'created_ms', 'outage_since')
  local staged, cursor = amount(facts[1]), amount(facts[2])
  local queued = staged - cursor + redis.call('ZCARD', job_key(job, DUE))
  local due = redis.call('ZRANGEBYSCORE', job_key(job, DUE), '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1)
  local since = math.max(0, tonumber(due[2] or '') or now)
  if staged > 0 and cursor == 0 then since = math.min(since, amount(facts[7])) end  -- it was never claimed
  return {queued, redis.call('HLEN', job_key(job, OWNERS)), amount(facts[3]),
    amount(facts[4]) - amount(facts[5]) - amount(facts[6]), since, is_count(facts[8]) and tonumber(facts[8]) or now}
end

local function count(job)
  local state, lane_name = unpack(redis.call('HMGET', job_key(job), 'state', 'lane'))
  if not (state and lane_name and string.match(state .. lane_name, '^[%a_]+$')) then return end
  local work = is_claimable(state) and work_of(job)  -- raises before anything is counted
  states[state] = (states[state] or 0) + 1
  if not work then return true end
  local lane = lanes[lane_name] or {0, 0, 0, 0}
  for i = 1, 4 do lane[i] = lane[i] + work[i] end
  lanes[lane_name] = lane
  oldest_due_ms = math.min(oldest_due_ms, work[5])
  oldest_outage_ms = math.min(oldest_outage_ms, work[6])
  return true
end

-- The newest first. Expired jobs do not count towards most_jobs.
local looked_at, counted, most = 0, 0, tonumber(ARGV[2])
while counted < most and looked_at < 4 * most do
  local jobs = redis.call('ZRANGE', JOBS, -looked_at - 1000, -looked_at - 1)
  for i = #jobs, 1, -1 do
    looked_at = looked_at + 1
    if found_of(jobs[i], count) then counted = counted + 1 end
    if counted == most or looked_at == 4 * most then break end
  end
  if #jobs < 1000 then break end
end
local quarantined = redis.pcall('GET', QUARANTINED)
local answer = cjson.encode({lanes = lanes, states = states, oldest_due_ms = now - oldest_due_ms,
  outage_ms = now - oldest_outage_ms, left_out = math.max(0, redis.call('ZCARD', JOBS) - looked_at),
  quarantined = type(quarantined) == 'string' and amount(quarantined) or 0})
redis.call('SET', BACKLOG, answer, 'PX', ARGV[1])
return answer
