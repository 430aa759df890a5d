-- The output is away: try the finishing again later. ARGV: job, token, delay_ms, reason. Answer: 1 if ours.
local job = ARGV[1]
if field(job, 'state') ~= 'finishing' or field(job, 'finish_token') ~= ARGV[2] then return 0 end
redis.call('HDEL', job_key(job), 'finish_token')
redis.call('HSET', job_key(job), 'reason', ARGV[4])
redis.call('ZADD', FINISHING, now_ms() + tonumber(ARGV[3]), job)
return 1
