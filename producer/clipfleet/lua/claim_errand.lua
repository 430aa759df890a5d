-- What is still to be done for an ended job. ARGV: lease_ms of an announcement, lease_ms of a sweep.
-- Answer: {} or, of an announcement, {its text}, of an output that is to be swept, {job, fingerprint, created_ms,
-- sweeps_left}. Until it is dropped it is handed out again after each lease: done twice rather than never.
local now = now_ms()

local function lease(errand, lease_ms)
  redis.call('ZADD', ERRANDS, now + tonumber(lease_ms), errand)
  keep(ERRANDS)
end

for _, errand in ipairs(redis.call('ZRANGEBYSCORE', ERRANDS, '-inf', now, 'LIMIT', 0, 100)) do
  if is_announcement(errand) then
    lease(errand, ARGV[1])
    return {errand}
  end
  at_hand = errand
  local state = field(errand, 'state')
  if state and is_final(state) then
    check(errand)
    lease(errand, ARGV[2])
    local facts = redis.call('HMGET', job_key(errand), 'fingerprint', 'created_ms', 'sweeps_left')
    return {errand, facts[1], facts[2], facts[3] or '1'}
  end
  redis.call('ZREM', ERRANDS, errand)  -- forgotten, or retried: then its next end orders sweeps anew
end
return {}
