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

-- What is known of a chunk and the staged file that holds it; `file` is nil where there is none.
local function read_chunk(job, chunk)
  return {
    id = chunk,
    file = redis.call('ZREVRANGEBYSCORE', job_key(job, STAGED), chunk, '-inf', 'LIMIT', 0, 1)[1],
    troubles = redis.call('HMGET', job_key(job, TROUBLES), chunk .. ':losses', chunk .. ':failures',
      chunk .. ':waits'),
  }
end

local function read_facts(job)
  return facts_of(job, 'state', 'generation', 'chunk_size', 'created_ms', 'fingerprint', 'lane', 'model',
    'retry_codes', 'next_chunk', 'staged_chunks', 'sealed', 'traceparent')
end

local function answer(job, facts, chunk, more)
  local first, chunks = string.match(chunk.file, '^(%d+)-(%d+)$')
  local troubles = chunk.troubles
  return {job, chunk.id, facts.generation, troubles[1] or '0', troubles[2] or '0', troubles[3] or '0',
    facts.fingerprint, first, chunks, more and '1' or '0', facts.chunk_size, facts.retry_codes or '',
    facts.created_ms, facts.traceparent or ''}
end

-- All that is read of a job, before anything is written: nil if it hands out nothing, else what may be claimed of it
-- (`chunk`, nil if nothing now), where that comes from (`is_next`: it was never claimed), and whether it has `more`.
-- A producer may have put another thing into a lane by hand: a job is what `submit` made.
local function look_at(job)
  local facts = read_facts(job)
  for _, name in ipairs({'generation', 'chunk_size', 'created_ms'}) do
    if not tonumber(facts[name] or '') then return nil end
  end
  if not (facts.fingerprint and facts.lane and facts.model and is_claimable(facts.state)) then return nil end
  local found = {facts = facts, owners = redis.call('HLEN', job_key(job, OWNERS))}
  local due = redis.call('ZRANGEBYSCORE', job_key(job, DUE), '-inf', now, 'LIMIT', 0, 2)
  local cursor, staged = tonumber(facts.next_chunk or '0'), tonumber(facts.staged_chunks or '0')
  if due[1] then
    found.chunk, found.more = read_chunk(job, due[1]), due[2] ~= nil or cursor < staged
  elseif cursor < staged then
    found.chunk, found.more, found.is_next = read_chunk(job, tostring(cursor)), cursor + 1 < staged, true
  else
    found.more = redis.call('ZCARD', job_key(job, DUE)) > 0  -- one waits for a back-off
    -- Looked at as in the other cases: a key of another kind has to show here.
    redis.call('ZCARD', job_key(job, STAGED))
    redis.call('HLEN', job_key(job, TROUBLES))
  end
  return found
end

-- A key of another kind would end the claims of all; any other error is none of the job's.
local function looked_at(job)
  local has_worked, found = pcall(look_at, job)
  if has_worked then return found end
  local message = type(found) == 'table' and found.err or found
  if not string.find(message, 'WRONGTYPE', 1, true) then error(found) end
  return nil
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

-- Take a chunk off the pile, whoever gets it; the job has its turn. The pile last: a script that is refused halfway, by
-- the rights of a worker, must not lose a chunk.
local function take_off(job, found, turn)
  local id = found.chunk.id
  redis.call('HSET', job_key(job), 'next_chunk', found.is_next and id + 1 or found.facts.next_chunk or 0, 'turn', turn)
  if not found.is_next then redis.call('ZREM', job_key(job, DUE), id) end
end

local function take(job, found, turn, queue)
  local lease = lease_name(job, found.chunk.id)
  redis.call('SET', TURNS, turn, 'PX', KEEP_MS)
  take_off(job, found, turn)
  redis.call('HSET', job_key(job, OWNERS), found.chunk.id, token)
  if found.owners == 0 then keep(job_key(job, OWNERS)) end
  redis.call('ZADD', LEASES, now + lease_ms, lease)
  keep(LEASES)
  redis.call('ZADD', queue, 'XX', turn, job)
  if not found.more and found.facts.sealed ~= '1' then redis.call('HSETNX', job_key(job), 'starved_since', now) end
  redis.call('SET', token_key(token), lease, 'PX', math.max(600000, lease_ms * 2))
  keep_job_hourly(job)
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

-- Looks at a thousand jobs at most, so that nobody else waits long.
local function try_lane(lane, turn)
  local queues = {}
  for i, model in ipairs(models) do queues[i] = {name = lane_queue(lane, model), skipped = 0} end
  for _ = 1, 1024 do
    local queue = longest_waiting(queues)
    if not queue then return nil end
    local job, stays = queue.job, true
    local found = looked_at(job)
    if not found then
      stays = false
    elseif not excluded[job] then
      if found.chunk and found.chunk.file then
        take(job, found, turn, queue.name)
        return answer(job, found.facts, found.chunk, found.more or others_wait(queue.name))
      end
      if found.chunk then take_off(job, found, turn) end  -- no file holds it: nobody could work on it
      stays = found.more  -- else all its chunks are leased or done; whatever comes back offers it again
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
  return answer(job, read_facts(job), read_chunk(job, chunk), true)
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
