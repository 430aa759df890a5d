-- Lease the sweep of an output. ARGV: lease_ms. Answer: {} or {job, fingerprint, created_ms, sweeps_left}. It is leased
-- again after each lease until it is dropped: an output is swept at least once.
local now = now_ms()
for _, job in ipairs(redis.call('ZRANGEBYSCORE', SWEEPS, '-inf', now, 'LIMIT', 0, 100)) do
  at_hand = job
  local state = field(job, 'state')
  if state and is_final(state) then
    check(job)
    redis.call('ZADD', SWEEPS, now + tonumber(ARGV[1]), job)
    keep(SWEEPS)
    local facts = redis.call('HMGET', job_key(job), 'fingerprint', 'created_ms', 'sweeps_left')
    return {job, facts[1], facts[2], facts[3] or '1'}
  end
  redis.call('ZREM', SWEEPS, job)  -- expired, or retried: then its next end orders sweeps
end
return {}
