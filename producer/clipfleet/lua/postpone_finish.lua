-- Try the finishing again later, or end the job where that has been in vain for too long. ARGV: job, token, delay_ms,
-- reason ('' if nothing is wrong), outage_ms, ttl_ms of a job that ends.
-- Answer: 'postponed', 'failed' or 'not_held'.
local job, reason, now = ARGV[1], ARGV[4], now_ms()
if field(job, 'state') ~= 'finishing' or field(job, 'finish_token') ~= ARGV[2] then return 'not_held' end
redis.call('HDEL', job_key(job), 'finish_token')
redis.call('HSET', job_key(job), 'reason', reason)
if reason ~= '' then
  redis.call('HSETNX', job_key(job), 'outage_since', now)
  if now - number(job, 'outage_since') > tonumber(ARGV[5]) then
    end_job(job, 'failed', reason, tonumber(ARGV[6]))
    return 'failed'
  end
end
redis.call('ZADD', FINISHING, now + tonumber(ARGV[3]), job)
return 'postponed'
