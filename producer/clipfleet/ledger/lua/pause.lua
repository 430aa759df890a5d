-- Pause or resume a job. ARGV: job, 'paused' or 'running', reason. Answer: {changed, state}.
local job = ARGV[1]
at_hand = job
check(job)
local state = field(job, 'state')

-- End all back-offs: after a resume there is nothing to wait for. A thousand are enough, because back-offs are short.
local function hasten(job)
  local now = now_ms()
  for _, chunk in ipairs(redis.call('ZRANGEBYSCORE', job_key(job, DUE), now, '+inf', 'LIMIT', 0, 1000)) do
    redis.call('ZADD', job_key(job, DUE), now, chunk)
  end
end

if not state then return {0, 'missing'} end
if ARGV[2] == 'paused' and is_claimable(state) then
  withdraw(job)
  redis.call('HSET', job_key(job), 'state', 'paused', 'reason', ARGV[3])
elseif ARGV[2] == 'running' and state == 'paused' then
  local sealed = field(job, 'sealed') == '1'
  redis.call('HSET', job_key(job), 'state', sealed and 'running' or 'submitting', 'reason', '')
  redis.call('HDEL', job_key(job), 'outage_since')
  hasten(job)
  offer(job)
  finish_if_done(job)  -- its finishing may have been paused
else
  return {0, state}
end
keep_job(job)
return {1, field(job, 'state')}
