-- Add a small job with all of its items, in one step: either all of it is there, or nothing. Its rows live in Redis.
-- ARGV: job, spec, fingerprint, lane, model, chunk_size, brief ('' for none), job_ttl_ms, result_ttl_ms, quota_items,
-- quota_bytes, name of the staged items, the items, chunks, number of items.
-- Answer: {'created'}, {'exists', fingerprint, spec} or {'quota', which, how much it would be}.
local job = ARGV[1]
at_hand = job
if redis.call('EXISTS', job_key(job)) == 1 then return {'exists', field(job, 'fingerprint'), spec_of(job)} end
local which, used = full_quota(ARGV[10], ARGV[11], tonumber(ARGV[15]))
if which then return {'quota', which, used} end
local now = now_ms()
redis.call('SET', job_key(job, SPEC), ARGV[2])
redis.call('HSET', job_key(job, ITEMS), ARGV[12], ARGV[13])
redis.call('ZADD', job_key(job, STAGED), 0, '0-' .. ARGV[14])
redis.call('HSET', job_key(job), 'fingerprint', ARGV[3], 'lane', ARGV[4], 'model', ARGV[5],
  'chunk_size', ARGV[6], 'state', 'running', 'generation', 0, 'staged_chunks', ARGV[14], 'staged_items', ARGV[15],
  'next_chunk', 0, 'sealed', 1, 'source_sum', '', 'done_chunks', 0, 'ok', 0, 'failed', 0, 'created_ms', now,
  'reason', '', 'max_error_rate', '', 'job_ttl_ms', ARGV[8], 'result_ttl_ms', ARGV[9])
if ARGV[7] ~= '' then redis.call('HSET', job_key(job), 'brief', ARGV[7]) end
redis.call('ZADD', JOBS, now, job)
redis.call('ZADD', COUNTED, now, job)
offer(job)
keep_job(job)
return {'created'}
