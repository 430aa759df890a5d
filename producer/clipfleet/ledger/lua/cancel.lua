-- End a job early. ARGV: job, state ('cancelled' or 'failed'), reason, ttl_ms; of a failed one the chunk (or 'finish')
-- and the token of the worker that gave up.
-- Answer: {changed, state}. A job that is finishing or over is not changed (a finishing one can still fail). A worker
-- that has lost its lease cannot end the job: the current owner of the chunk may succeed.
local job, chunk, token = ARGV[1], ARGV[5], ARGV[6]
at_hand = job
check(job)
if token then redis.call('ZREM', job_key(job, WRITERS), token) end  -- it has stopped writing
local state = field(job, 'state')
if not state then return {0, 'missing'} end
if is_final(state) or (state == 'finishing' and ARGV[2] == 'cancelled') then return {0, state} end
if chunk == 'finish' then
  if field(job, 'finish_token') ~= token then return {0, state} end
elseif chunk and not owns(job, chunk, token) then
  return {0, state}
end
end_job(job, ARGV[2], ARGV[3], tonumber(ARGV[4]))
if token then redis.call('ZREM', job_key(job, WRITERS), token) end  -- it has stopped writing
return {1, ARGV[2]}
