-- Restore a job that the ledger has lost, as its output shows it, with its draft (see draft_begin).
-- ARGV: job, token, spec, fingerprint, lane, model, chunk_size, max_error_rate ('' for none), created_ms,
-- generation, error codes to retry, state, staged_chunks, staged_items, ttl_ms of an ended job, source_sum ('' for
-- none), finished_ms ('' for now), brief ('' for none), fingerprint of its vectors ('' for none), next_chunk, ok, failed,
-- code, count, ...
-- state: 'submitting' (not sealed), 'running' or a final one (its event is not sent again).
-- Answer: {'rebuilt', state} (also to a repetition), {'exists', state} or {'taken', ''}.
local job, token, state = ARGV[1], ARGV[2], ARGV[12]
at_hand = job
if redis.call('EXISTS', job_key(job)) == 1 then
  return {field(job, 'draft_token') == token and 'rebuilt' or 'exists', field(job, 'state')}
end
check_draft(job)
if redis.pcall('GET', job_key(job, DRAFT)) ~= token then return {'taken', ''} end
redis.call('SET', job_key(job, SPEC), ARGV[3])
redis.call('HSET', job_key(job), 'fingerprint', ARGV[4], 'lane', ARGV[5], 'model', ARGV[6],
  'chunk_size', ARGV[7], 'max_error_rate', ARGV[8], 'created_ms', ARGV[9], 'generation', ARGV[10],
  'retry_codes', ARGV[11], 'state', state, 'sealed', state == 'submitting' and 0 or 1, 'staged_chunks', ARGV[13],
  'staged_items', ARGV[14], 'reason', '', 'source_sum', ARGV[16])
if ARGV[18] ~= '' then redis.call('HSET', job_key(job), 'brief', ARGV[18]) end
if ARGV[19] ~= '' then redis.call('HSET', job_key(job), 'fingerprint_of_vectors', ARGV[19]) end
redis.call('ZADD', JOBS, ARGV[9], job)
if redis.call('EXISTS', job_key(job, DRAFT_STAGED)) == 1 then
  redis.call('RENAME', job_key(job, DRAFT_STAGED), job_key(job, STAGED))
end
apply_draft(job, 20)
if is_final(state) then
  redis.call('HSET', job_key(job), 'finished_ms', ARGV[17] ~= '' and ARGV[17] or now_ms())
  keep_job(job, tonumber(ARGV[15]))
else
  go_on(job)
end
return {'rebuilt', field(job, 'state')}
