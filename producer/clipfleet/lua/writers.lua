-- Workers that may still be inside a write, though they hold no lease of this job any more. ARGV: job, write_limit_ms.
-- Answer: {how many, for how many ms at most}. Whoever says that it has ended is not among them.
local writers = redis.call('ZRANGEBYSCORE', job_key(ARGV[1], WRITERS), now_ms() - tonumber(ARGV[2]), '+inf', 'WITHSCORES')
if #writers == 0 then return {0, 0} end
return {#writers / 2, writers[#writers] + ARGV[2] - now_ms()}
