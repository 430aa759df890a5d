-- Mend what workers left behind. ARGV: first_back_off_ms, worker_silence_ms, lease_ms, period_ms.
-- Answer: {chunks lost, jobs to finish now}.
local now = now_ms()
local lost, mended = 0, {}
keep(LEASES)  -- also where Redis is full: see transitions.lua

-- Every worker reconciles every few seconds. Where that has not happened for long, none could reach this Redis, or
-- none lived: such a time counts against nobody. A lease has after it what was left of it before, else every chunk
-- would be lost to an outage in which no worker died. But two periods may lie between two calls: were the time of
-- a worker that is alone to stand still again and again, the leases of dead ones would never end.
local silence = now - tonumber(redis.call('GET', RECONCILED) or now)
local lease_ms = tonumber(ARGV[3])
if silence > math.max(lease_ms / 2, 2 * tonumber(ARGV[4])) then
  for key, latest in pairs({[LEASES] = now + lease_ms, [WORKERS] = now}) do
    local marks = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for i = 1, #marks, 2 do
      local mark = tonumber(marks[i + 1])
      redis.call('ZADD', key, math.max(mark, math.min(mark + silence, latest)), marks[i])
    end
  end
end
redis.call('SET', RECONCILED, now, 'PX', KEEP_MS)

local function take_back(job, chunk)
  local state, lane, model = unpack(redis.call('HMGET', job_key(job), 'state', 'lane', 'model'))
  if not (state and lane and model) or is_final(state) or state == 'finishing' then return false end
  mended[job] = true
  local token = redis.call('HGET', job_key(job, OWNERS), chunk)
  if token then note_writer(job, token, now) end
  local times = count_trouble(job, chunk, 'losses')
  -- The first loss is due at once: most workers die for reasons of their own. Then it may be the chunk.
  give_back(job, chunk, times == 1 and now or now + back_off_ms(tonumber(ARGV[1]), times - 1, MOST_BACK_OFF_MS))
  return true
end

for _, lease in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, 1000)) do
  local job, chunk = string.match(lease, '^(.+):(%d+)$')  -- planted by hand it may be anything
  if job and found_of(job, function() return take_back(job, chunk) end) then
    lost = lost + 1
  else
    redis.call('ZREM', LEASES, lease)
  end
end
for job in pairs(mended) do keep_job(job) end
local silent = redis.call('ZRANGEBYSCORE', WORKERS, '-inf', now - tonumber(ARGV[2]))
for _, worker in ipairs(silent) do
  redis.call('ZREM', WORKERS, worker)
  redis.call('HDEL', WORKER_FACTS, worker)
end
for _, job in ipairs(redis.call('ZRANGE', JOBS, 0, 99)) do
  if redis.call('EXISTS', job_key(job)) == 0 then redis.call('ZREM', JOBS, job) end
end
return {lost, redis.call('ZCOUNT', FINISHING, '-inf', now)}
