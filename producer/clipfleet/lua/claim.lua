-- Lease the best due chunk. ARGV: token, lease_ms, #lanes, lane..., #models, model..., excluded job...
-- Lanes come best first; every 8th claim looks from the bottom, so that no lane starves. Jobs of a lane take
-- turns.
-- Answer: {} or {job, chunk, generation, losses, failures, waits, fingerprint, first_chunk, chunks, more,
-- chunk_size, retry_codes, created_ms} where more = 1 if work remains for another claim.
local token, lease_ms = ARGV[1], tonumber(ARGV[2])
local position = 3
local function read_list()
  local values, count = {}, tonumber(ARGV[position])
  for i = 1, count do values[i] = ARGV[position + i] end
  position = position + count + 1
  return values
end
local lanes, models = read_list(), read_list()
local excluded = {}
for i = position, #ARGV do excluded[ARGV[i]] = true end
local now = now_ms()

-- The staged file that holds a chunk, or nil.
local function staged_file(job, chunk)
  return redis.call('ZREVRANGEBYSCORE', job_key(job, STAGED), chunk, '-inf', 'LIMIT', 0, 1)[1]
end

local function answer(job, chunk, more)
  local facts = redis.call('HMGET', job_key(job), 'generation', 'fingerprint', 'chunk_size',
    'retry_codes', 'created_ms')
  local troubles = redis.call('HMGET', job_key(job, TROUBLES),
    chunk .. ':losses', chunk .. ':failures', chunk .. ':waits')
  local first, chunks = string.match(staged_file(job, chunk), '^(%d+)-(%d+)$')
  return {job, chunk, facts[1], troubles[1] or '0', troubles[2] or '0', troubles[3] or '0', facts[2],
    first, chunks, more and '1' or '0', facts[3], facts[4] or '',
    facts[5]}
end

local function take(job, chunk, turn, queue)
  redis.call('SET', TURNS, turn)
  redis.call('ZREM', job_key(job, DUE), chunk)
  redis.call('HSET', job_key(job, OWNERS), chunk, token)
  redis.call('ZADD', LEASES, now + lease_ms, lease_name(job, chunk))
  redis.call('HSET', job_key(job), 'turn', turn)
  redis.call('ZADD', queue, 'XX', turn, job)
  redis.call('SET', token_key(token), lease_name(job, chunk), 'PX', math.max(600000, lease_ms * 2))
  keep_job(job)
end

-- The next chunk of a job, and whether the job has more; or nil, and whether one waits for a back-off.
local function next_chunk(job)
  local due = redis.call('ZRANGEBYSCORE', job_key(job, DUE), '-inf', now, 'LIMIT', 0, 2)
  local cursor, staged = number(job, 'next_chunk'), number(job, 'staged_chunks')
  if due[1] then return due[1], due[2] ~= nil or cursor < staged end
  if cursor < staged then
    redis.call('HSET', job_key(job), 'next_chunk', cursor + 1)
    return tostring(cursor), cursor + 1 < staged
  end
  return nil, redis.call('ZCARD', job_key(job, DUE)) > 0
end

-- Is there work beside this job's? A job leaves its queue when a claim finds it empty: may be one too many.
local function others_wait(own_queue)
  for _, lane in ipairs(lanes) do
    for _, model in ipairs(models) do
      local queue = lane_queue(lane, model)
      local jobs = redis.call('ZCARD', queue)
      if jobs > (queue == own_queue and 1 or 0) then return true end
    end
  end
  return false
end

-- Of a lane's queues the one whose foremost job has waited longest; `skipped` jobs of each were looked at.
local function longest_waiting(queues)
  local best
  for _, queue in ipairs(queues) do
    if not queue.job then
      local found = redis.call('ZRANGE', queue.name, queue.skipped, queue.skipped, 'WITHSCORES')
      queue.job, queue.turn = found[1], tonumber(found[2] or '0')
    end
    if queue.job and (not best or queue.turn < best.turn) then best = queue end
  end
  return best
end

-- Whether a job is one that `submit` made: a producer may have put another thing into a lane by hand.
local function is_sound(job)
  local facts = redis.call('HMGET', job_key(job), 'generation', 'chunk_size', 'created_ms', 'fingerprint', 'lane',
    'model')
  for i = 1, 6 do
    if not facts[i] or (i <= 3 and not tonumber(facts[i])) then return false end
  end
  for _, suffix in ipairs({DUE, STAGED}) do redis.call('ZCARD', job_key(job, suffix)) end
  for _, suffix in ipairs({OWNERS, TROUBLES}) do redis.call('HLEN', job_key(job, suffix)) end
  return true
end

-- A key of another kind would end the claims of all; any other error is none of the job's.
local function may_be_claimed(job)
  local has_worked, answer = pcall(is_sound, job)
  if has_worked then return answer and is_claimable(field(job, 'state')) end
  local message = type(answer) == 'table' and answer.err or answer
  if not string.find(message, 'WRONGTYPE', 1, true) then error(answer) end
  return false
end

-- Looks at a thousand jobs at most, so that nobody else waits long.
local function try_lane(lane, turn)
  local queues = {}
  for i, model in ipairs(models) do queues[i] = {name = lane_queue(lane, model), skipped = 0} end
  for _ = 1, 1024 do
    local queue = longest_waiting(queues)
    if not queue then return nil end
    local job, stays = queue.job, true
    if not may_be_claimed(job) then
      stays = false
    elseif not excluded[job] then
      local chunk, more = next_chunk(job)
      if chunk and not staged_file(job, chunk) then
        redis.call('ZREM', job_key(job, DUE), chunk)
      elseif chunk then
        take(job, chunk, turn, queue.name)
        return answer(job, chunk, more or others_wait(queue.name))
      end
      stays = more  -- else all its chunks are leased or done; whatever comes back offers it again
    end
    if stays then queue.skipped = queue.skipped + 1 else redis.call('ZREM', queue.name, job) end
    queue.job = nil
  end
  return nil
end

local earlier = redis.call('GET', token_key(token))
if earlier then
  local job, chunk = string.match(earlier, '^(.+):(%d+)$')
  if not owns(job, chunk, token) then return {} end
  redis.call('ZADD', LEASES, now + lease_ms, earlier)
  return answer(job, chunk, true)
end
local turn = tonumber(redis.call('GET', TURNS) or '0') + 1  -- counted once something is found
if turn % 8 == 0 then
  local reversed = {}
  for i = #lanes, 1, -1 do reversed[#reversed + 1] = lanes[i] end
  lanes = reversed
end
for _, lane in ipairs(lanes) do
  local found = try_lane(lane, turn)
  if found then return found end
end
return {}
