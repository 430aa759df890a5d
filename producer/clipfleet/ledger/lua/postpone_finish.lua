-- Release the finishing of a job, to be claimed again later; give up if it has failed for too long. ARGV: job, token,
-- delay_ms, reason ('' if nothing is wrong), outage_ms, ttl_ms of a job that ends, the state after giving up: 'paused'
-- (`resume` tries again) or 'failed' (waiting does not help).
-- Answer: 'postponed', 'paused', 'failed' or 'not_held'.
local job, reason = ARGV[1], ARGV[4]
at_hand = job
check(job)
redis.call('ZREM', job_key(job, WRITERS), ARGV[2])
if field(job, 'state') ~= 'finishing' or field(job, 'finish_token') ~= ARGV[2] then return 'not_held' end
redis.call('HDEL', job_key(job), 'finish_token')
if reason == '' then
  redis.call('HSET', job_key(job), 'reason', '')
elseif note_outage(job, reason, tonumber(ARGV[5])) then
  if ARGV[7] == 'failed' then
    end_job(job, 'failed', reason, tonumber(ARGV[6]))
  else
    redis.call('ZREM', FINISHING, job)
    redis.call('HSET', job_key(job), 'state', 'paused')
    keep_job(job)
  end
  return ARGV[7]
end
redis.call('ZADD', FINISHING, now_ms() + tonumber(ARGV[3]), job)
return 'postponed'
