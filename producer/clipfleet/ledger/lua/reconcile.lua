-- Release expired leases, and repair shared keys. ARGV: first_back_off_ms, worker_silence_ms, lease_ms, period_ms.
-- Answer: {chunks lost, jobs that are due to be finished}.
local now = now_ms()
local lost, mended = 0, {}
keep(LEASES)  -- so that it works when Redis is full: see transitions.lua

-- Every worker reconciles every few seconds. A long gap means that no worker reached this Redis: after such a gap each
-- lease keeps its remaining time, else an outage in which no worker died would lose every chunk. Gaps of up to two
-- periods do not count: they are normal for a single worker, and would keep the leases of dead workers alive for
-- ever.
local reconciled = redis.pcall('GET', RECONCILED)
local silence = now - (type(reconciled) == 'string' and is_count(reconciled) and reconciled or now)
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

local MOST_LEASE_MS = 86400 * 1000  -- that the setting allows

-- Move marks of a zset that were set before the clock was put back, or that no clock can have set, by back_ms, but none
-- before `earliest`. Each keeps its remaining time, however long the leases of its worker are.
local function put_back(key, beyond, back_ms, earliest)
  local marks = redis.call('ZRANGEBYSCORE', key, '(' .. string.format('%.0f', beyond), '+inf', 'WITHSCORES')
  for i = 1, #marks, 2 do
    redis.call('ZADD', key, math.max(earliest, marks[i + 1] - back_ms), marks[i])
  end
end

-- The server's clock was put back: without this every mark would be due that much later. (The time to live of a key
-- depends on that clock, too.)
if silence < 0 then
  for _, key in ipairs({LEASES, FINISHING, ANNOUNCEMENTS}) do put_back(key, now + lease_ms, -silence, now + lease_ms) end
  put_back(SWEEPS, now + SWEEP_AGAIN_MS, -silence, now)
  for _, job in ipairs(redis.call('ZRANGE', JOBS, 0, -1)) do
    found_of(job, function() put_back(job_key(job, DUE), now, -silence, now) end)
    found_of(job, function() put_back(job_key(job, WRITERS), now + lease_ms, -silence, now + lease_ms) end)
  end
  redis.call('UNLINK', BACKLOG)
end
-- No mark is a day away.
for _, key in ipairs({LEASES, FINISHING, SWEEPS, ANNOUNCEMENTS}) do
  put_back(key, now + MOST_LEASE_MS, math.huge, now + lease_ms)
end
put_back(WORKERS, now, math.huge, now)
redis.call('SET', RECONCILED, now, 'PX', KEEP_MS)

local checked = {}

-- Release a chunk whose lease has expired; false if it has no owner.
local function release_lost(job, chunk)
  at_hand = job
  local state = field(job, 'state')
  if not checked[job] then check(job) end
  checked[job] = true
  if not state or is_final(state) or state == 'finishing' then return false end
  local token = redis.call('HGET', job_key(job, OWNERS), chunk)
  if not token then return false end
  mended[job] = true
  redis.call('HDEL', job_key(job, SETTLED), token)
  note_writer(job, token, now)
  local times = count_trouble(job, chunk, 'losses')
  -- After the first loss the chunk is due at once: rarely is it the reason why a worker died.
  release_chunk(job, chunk, times == 1 and now or now + back_off_ms(tonumber(ARGV[1]), times - 1, MOST_BACK_OFF_MS))
  return true
end

for _, lease in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, 1000)) do
  local job, chunk = string.match(lease, '^(.+):(%d+)$')  -- it may be planted
  if job and release_lost(job, chunk) then
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

-- Check the next jobs of the index, starting over at its end: remove those that have expired, restore the others. Every
-- worker does this in each period: the cost of a call must not depend on the number of jobs.
local MOST_WALKED, MOST_RESTORED, SOME_OWNERS = 250, 5, 16

local function walk()
  local walked = redis.pcall('GET', WALKED)
  local rank, restored = type(walked) == 'string' and is_count(walked) and tonumber(walked) or 0, 0
  local jobs = redis.call('ZRANGE', JOBS, rank, rank + MOST_WALKED - 1)
  local is_end = #jobs < MOST_WALKED
  for i, job in ipairs(jobs) do
    at_hand = job
    local state, created_ms = unpack(redis.call('HMGET', job_key(job), 'state', 'created_ms'))
    if not (state or created_ms) and redis.call('EXISTS', job_key(job)) == 0 then
      redis.call('ZREM', JOBS, job)
      redis.call('ZREM', COUNTED, job)
    else
      rank = rank + 1
      if not is_final(state) then
        restore(job, lease_ms, SOME_OWNERS)
        restored = restored + 1
      end
    end
    if restored == MOST_RESTORED then
      is_end = is_end and i == #jobs
      break
    end
  end
  redis.call('SET', WALKED, is_end and 0 or rank, 'PX', KEEP_MS)
end

walk()
for _, key in ipairs({JOBS, COUNTED, FINISHING, SWEEPS, LEASES}) do keep(key) end
return {lost, redis.call('ZCOUNT', FINISHING, '-inf', now)}
