-- An output was swept. ARGV: job, sweeps_left as they were claimed. Repeated: nothing happens.
local job, left = ARGV[1], tonumber(ARGV[2])
at_hand = job
if number(job, 'sweeps_left') ~= left then return 0 end
redis.call('HSET', job_key(job), 'sweeps_left', left - 1)
if left > 1 then
  redis.call('ZADD', SWEEPS, 'XX', now_ms() + SWEEP_AGAIN_MS, job)
else
  redis.call('ZREM', SWEEPS, job)
end
return 1
