-- Lease the best due chunk. ARGV: token, lease_ms, #lanes, lane..., #models, model..., excluded job...
-- Lanes are given best first. Every 8th claim starts from the bottom, so that no lane starves: once with the lowest, the
-- next time with the one above it. Jobs of a lane take turns.
-- Answer: {} or {job, chunk, generation, losses, failures, waits, fingerprint, first_chunk, chunks, more,
-- chunk_size, retry_codes, created_ms, traceparent} where more = 1 if work remains for another claim.
-- A job that cannot be read stops this script before its first write, and fails: see guard.lua.
local token, lease_ms, now = ARGV[1], tonumber(ARGV[2]), now_ms()
local first_lane, last_lane = 4, 3 + ARGV[3]
local first_model, last_model = last_lane + 2, last_lane + 1 + ARGV[last_lane + 1]

-- Read all that is needed of a job, before the first write: nil if it hands out nothing. Else its `chunk` (nil: none is
-- due now) and the `answer` for it, whether that chunk was never claimed (`is_next`), and whether it has `more`. For a
-- chunk that is `held` only the answer counts.
-- A producer may have put anything into a lane by hand: only what `submit` has made is a job.
local function look_at(job, held)
  local state, generation, chunk_size, created_ms, fingerprint, lane, model, retry_codes, next_chunk, staged_chunks,
    sealed, traceparent, last_file = unpack(redis.call('HMGET', job_key(job), 'state', 'generation', 'chunk_size',
    'created_ms', 'fingerprint', 'lane', 'model', 'retry_codes', 'next_chunk', 'staged_chunks', 'sealed', 'traceparent',
    'last_file'))
  if not (held or is_claimable(state)) then
    return nil
  end
  local cursor, staged = tonumber(next_chunk or '0'), tonumber(staged_chunks or '0')
  local numbers = generation .. ' ' .. chunk_size .. ' ' .. created_ms
  if not (fingerprint and lane and model and cursor >= 0 and cursor <= staged and staged < 1e14 and #numbers < 45
    and string.find(numbers, '^%d+ %d%d?%d?%d? %d+$')) then
    error({err = 'DAMAGED fields'})
  end
  local found = {chunk = held, more = true, is_next = false, cursor = cursor, owners = 0,
    sealed = sealed, file = last_file, answer = nil, has_left = false}
  if not held then
    found.owners = redis.call('HLEN', job_key(job, OWNERS))
    local due = redis.call('ZRANGEBYSCORE', job_key(job, DUE), '-inf', now, 'LIMIT', 0, 2)
    if due[1] then
      if not string.find(due[1], '^%d+$') then error({err = 'DAMAGED due: one is no chunk'}) end
      found.chunk, found.more = due[1], due[2] ~= nil or cursor < staged
    elseif cursor < staged then
      found.chunk, found.is_next = string.format('%d', cursor), true
      found.more = cursor + 1 < staged
    else
      found.more = redis.call('ZCARD', job_key(job, DUE)) > 0  -- one is backing off
      return found
    end
  end
  -- Most chunks lie in the same staged file as the one before.
  local chunk = found.chunk
  local first, chunks = string.match(last_file or '', '^(%d+)-(%d+)$')
  if not first or tonumber(chunk) < tonumber(first) or tonumber(chunk) >= first + chunks then
    found.file = redis.call('ZREVRANGEBYSCORE', job_key(job, STAGED), chunk, '-inf', 'LIMIT', 0, 1)[1]
    first, chunks = string.match(found.file or '', '^(%d+)-(%d+)$')
    if not first or tonumber(chunk) < tonumber(first) or tonumber(chunk) >= first + chunks then
      error({err = 'DAMAGED staged files: none holds chunk ' .. chunk})
    end
  end
  local losses, failures, waits
  if not found.is_next then
    losses, failures, waits = unpack(redis.call('HMGET', job_key(job, TROUBLES), chunk .. ':losses',
      chunk .. ':failures', chunk .. ':waits'))
    local troubles = table.concat({losses or '0', failures or '0', waits or '0'}, ' ')
    if #troubles > 44 or not string.find(troubles, '^%d+ %d+ %d+$') then
      error({err = 'DAMAGED troubles of chunk ' .. chunk})
    end
  end
  found.answer = {job, chunk, generation, losses or '0', failures or '0', waits or '0', fingerprint, first, chunks,
    found.more and '1' or '0', chunk_size, retry_codes or '', created_ms, traceparent or ''}
  return found
end

-- The queue of a lane whose first job has waited longest; `skipped` jobs of each queue have been tried.
local function longest_waiting(queues)
  local best
  for _, queue in ipairs(queues) do
    if not queue.job then
      queue_at_hand = queue.name
      local found = redis.call('ZRANGE', queue.name, queue.skipped, queue.skipped, 'WITHSCORES')
      queue.job, queue.turn = found[1], tonumber(found[2] or '0')
    end
    if queue.job and (not best or queue.turn < best.turn) then best = queue end
  end
  return best
end

-- Remove a chunk from those to be claimed, and give the job its turn. The removal comes last: a script that lacks a
-- right and stops halfway must not lose a chunk.
local function remove_chunk(job, found, turn)
  redis.call('HSET', job_key(job), 'next_chunk', found.is_next and found.cursor + 1 or found.cursor, 'turn', turn,
    'last_file', found.file or '')
  if not found.is_next then redis.call('ZREM', job_key(job, DUE), found.chunk) end
end

local function take(job, found, turn, queue)
  local lease = lease_name(job, found.chunk)
  redis.call('SET', TURNS, turn, 'PX', KEEP_MS)
  redis.call('ZADD', LEASES, now + lease_ms, lease)  -- first: the key may be of another kind
  remove_chunk(job, found, turn)
  redis.call('HSET', job_key(job, OWNERS), found.chunk, token)
  if found.owners == 0 then  -- only then may these keys be new
    keep(job_key(job, OWNERS))
    keep(LEASES)
  end
  -- A sealed job that has handed out all leaves at once, so that the claim before says no more: with many small jobs
  -- each would cost a hint in vain. A chunk that comes back offers the job again.
  found.has_left = not found.more and found.sealed == '1' and redis.call('ZCARD', job_key(job, DUE)) == 0
  if found.has_left then redis.call('ZREM', queue, job) else redis.call('ZADD', queue, 'XX', turn, job) end
  if not found.more and found.sealed ~= '1' then redis.call('HSETNX', job_key(job), 'starved_since', now) end
  redis.call('SET', token_key(token), lease, 'PX', math.max(600000, lease_ms * 2))
end

local function is_excluded(job)
  for i = last_model + 1, #ARGV do
    if ARGV[i] == job then return true end
  end
  return false
end

-- Lease a chunk of a lane: its job and what `look_at` found, or nil. Tries a thousand jobs at most, so that other calls
-- do not wait for long.
local function try_lane(lane, turn)
  local queues = {}
  for i = first_model, last_model do
    queues[i - first_model + 1] = {name = lane_queue(lane, ARGV[i]), skipped = 0, job = nil, turn = nil}
  end
  for _ = 1, 1024 do
    local queue = longest_waiting(queues)
    if not queue then return nil end
    local job, stays = queue.job, true
    at_hand = job
    local found = look_at(job)
    if not found then
      stays = false
    elseif not is_excluded(job) then
      if found.answer then
        take(job, found, turn, queue.name)
        return job, found, queue.name
      end
      stays = found.more  -- else all chunks are leased or done; one that comes back offers the job again
    end
    if stays then queue.skipped = queue.skipped + 1 else redis.call('ZREM', queue.name, job) end
    queue.job = nil
  end
  return nil
end

local earlier = redis.pcall('GET', token_key(token))
if type(earlier) == 'string' then
  local job, chunk = string.match(earlier, '^(.+):(%d+)$')
  at_hand = job
  local found = job and owns(job, chunk, token) and look_at(job, chunk)
  if not found then return {} end
  redis.call('ZADD', LEASES, now + lease_ms, earlier)
  return found.answer
end
local turns, MOST_TURNS = tonumber(redis.pcall('GET', TURNS)), 5e13
if not (turns and turns >= 0 and turns <= MOST_TURNS) then  -- lost: the highest turn of a job is the last one
  turns = 0
  for lane = first_lane, last_lane do
    for model = first_model, last_model do
      local queue = lane_queue(ARGV[lane], ARGV[model])
      queue_at_hand = queue
      for _, job in ipairs(redis.call('ZRANGEBYSCORE', queue, '(' .. string.format('%.0f', MOST_TURNS), '+inf')) do
        redis.call('ZADD', queue, 0, job)  -- planted: no claim has set this turn
      end
      local last = redis.call('ZRANGE', queue, -1, -1, 'WITHSCORES')
      turns = math.max(turns, tonumber(last[2] or '0'))
    end
  end
end
local turn = math.floor(turns) + 1  -- stored only if a chunk is found
local lanes = {unpack(ARGV, first_lane, last_lane)}
if turn % 8 == 0 then
  for i = 1, #lanes do lanes[i] = ARGV[last_lane + 1 - i] end
  if turn % 16 == 0 and #lanes > 2 then lanes[1], lanes[2] = lanes[2], lanes[1] end
end
local job, found, own_queue
for _, lane in ipairs(lanes) do
  job, found, own_queue = try_lane(lane, turn)
  if job then break end
end
if not job then return {} end
if found.more and is_kept(job) then return found.answer end

-- Rarely:
if not is_kept(job) then keep_job(job) end

-- Whether other jobs have work. One that is not sealed leaves its queue only when a claim finds it empty, so this may be
-- one too many.
local function others_wait()
  for lane = first_lane, last_lane do
    for model = first_model, last_model do
      local queue = lane_queue(ARGV[lane], ARGV[model])
      if redis.call('ZCARD', queue) > (queue == own_queue and not found.has_left and 1 or 0) then return true end
    end
  end
  return false
end

if not found.more and others_wait() then found.answer[10] = '1' end
return found.answer
