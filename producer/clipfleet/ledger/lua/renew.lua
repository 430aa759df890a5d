-- Extend leases, several at once. ARGV: lease_ms, then job, chunk, token of each (chunk 'finish': its finishing).
-- Answer, in the same order: 'held', 'lost', 'cancelled' or 'paused' (paused is held too).
local deadline = now_ms() + tonumber(ARGV[1])
local answers = {}
keep(LEASES)
for i = 2, #ARGV, 3 do
  local job, chunk, token = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  at_hand = job
  local state = field(job, 'state')
  local word = 'lost'
  if state == 'cancelled' or state == 'failed' then
    word = 'cancelled'
  elseif chunk == 'finish' then
    if state == 'finishing' and field(job, 'finish_token') == token then
      redis.call('ZADD', FINISHING, deadline, job)
      word = 'held'
    end
  elseif state and owns(job, chunk, token) then
    redis.call('ZADD', LEASES, deadline, lease_name(job, chunk))
    word = state == 'paused' and 'paused' or 'held'
  end
  -- The worker is alive, and may be inside a write until it releases the chunk.
  if state and word ~= 'held' and word ~= 'paused' then
    redis.call('ZADD', job_key(job, WRITERS), 'XX', deadline, token)
  end
  answers[#answers + 1] = word
end
return answers
