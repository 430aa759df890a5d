-- The part of a chunk is in place. ARGV: job, chunk, token, generation, ok, failed, #codes, code, count, ...,
-- stage, seconds, ... Whoever wrote or found the part may say so, lease or not: there is exactly one part.
-- Answer: 'done', 'finishing' (done, and it was the last), 'already', 'stale' (another generation),
-- 'cancelled' or 'missing'.
local job, chunk = ARGV[1], ARGV[2]
local state = field(job, 'state')
if not state or tonumber(chunk) >= number(job, 'next_chunk') then return 'missing' end
if state == 'cancelled' or state == 'failed' then return 'cancelled' end
if field(job, 'generation') ~= ARGV[4] then return 'stale' end
if redis.call('SETBIT', job_key(job, DONE), chunk, 1) == 1 then return 'already' end
drop_lease(job, chunk)
redis.call('ZREM', job_key(job, DUE), chunk)
redis.call('HDEL', job_key(job, TROUBLES), chunk .. ':losses', chunk .. ':failures', chunk .. ':waits')
redis.call('HDEL', job_key(job), 'outage_since')
redis.call('HINCRBY', job_key(job), 'done_chunks', 1)
redis.call('HINCRBY', job_key(job), 'ok', ARGV[5])
redis.call('HINCRBY', job_key(job), 'failed', ARGV[6])
local codes_end = 7 + 2 * tonumber(ARGV[7])
for i = 8, codes_end, 2 do redis.call('HINCRBY', job_key(job, CODES), ARGV[i], ARGV[i + 1]) end
for i = codes_end + 1, #ARGV, 2 do
  redis.call('HINCRBYFLOAT', job_key(job), 'seconds:' .. ARGV[i], ARGV[i + 1])
end
redis.call('XADD', job_key(job, STREAM), 'MAXLEN', '~', 10000, '*', 'chunk', chunk, 'ok', ARGV[5],
  'failed', ARGV[6])
local is_last = finish_if_done(job)
keep_job(job)
return is_last and 'finishing' or 'done'
