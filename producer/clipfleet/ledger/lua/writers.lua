-- Count the workers that may still be inside a write without holding a lease of this job. ARGV: job, write_limit_ms.
-- Answer: {how many, for how many ms at most}. Workers that have reported the end of their write do not count.
-- No lease is longer than a day: later marks are planted.
at_hand = ARGV[1]
local now, DAY_MS = now_ms(), 86400000
local writers = redis.call('ZRANGEBYSCORE', job_key(ARGV[1], WRITERS), now - ARGV[2], now + DAY_MS, 'WITHSCORES')
if #writers == 0 then return {0, 0} end
return {#writers / 2, string.format('%d', writers[#writers] + ARGV[2] - now)}
