-- Add a job. ARGV: job, spec, fingerprint, lane, model, chunk_size, max_error_rate ('' for none), quota_items,
-- quota_bytes, traceparent ('' for none), brief ('' for none); if its rows live in Redis also job_ttl_ms, result_ttl_ms.
-- Answer: {'created'}, {'exists', state, fingerprint, spec} or {'quota', which, how much it would be}.
local job = ARGV[1]
at_hand = job
if redis.call('EXISTS', job_key(job)) == 1 then
  return {'exists', field(job, 'state'), field(job, 'fingerprint'), spec_of(job)}
end
local which, used = full_quota(ARGV[8], ARGV[9], 1)
if which then return {'quota', which, used} end
local now = now_ms()
redis.call('SET', job_key(job, SPEC), ARGV[2])
redis.call('HSET', job_key(job), 'fingerprint', ARGV[3], 'lane', ARGV[4], 'model', ARGV[5],
  'chunk_size', ARGV[6], 'state', 'submitting', 'generation', 0, 'staged_chunks', 0, 'staged_items', 0,
  'next_chunk', 0, 'sealed', 0, 'done_chunks', 0, 'ok', 0, 'failed', 0, 'created_ms', now, 'reason', '',
  'max_error_rate', ARGV[7])
if ARGV[10] ~= '' then redis.call('HSET', job_key(job), 'traceparent', ARGV[10]) end
if ARGV[11] ~= '' then redis.call('HSET', job_key(job), 'brief', ARGV[11]) end
if ARGV[13] then redis.call('HSET', job_key(job), 'job_ttl_ms', ARGV[12], 'result_ttl_ms', ARGV[13]) end
redis.call('ZADD', JOBS, now, job)
redis.call('ZADD', COUNTED, now, job)
keep_job(job)
return {'created'}
