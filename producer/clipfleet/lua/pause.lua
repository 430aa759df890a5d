-- Pause or resume a job. ARGV: job, 'paused' or 'running', reason. Answer: {changed, state}.
local job, state = ARGV[1], field(ARGV[1], 'state')
if not state then return {0, 'missing'} end
if ARGV[2] == 'paused' and is_claimable(state) then
  withdraw(job)
  redis.call('HSET', job_key(job), 'state', 'paused', 'reason', ARGV[3])
elseif ARGV[2] == 'running' and state == 'paused' then
  local sealed = field(job, 'sealed') == '1'
  redis.call('HSET', job_key(job), 'state', sealed and 'running' or 'submitting', 'reason', '')
  redis.call('HDEL', job_key(job), 'outage_since')
  offer(job)
else
  return {0, state}
end
keep_job(job)
return {1, field(job, 'state')}
