-- Record the end of the source: no more chunks will come. ARGV: job, chunks, items, source_sum ('' for none).
-- Answer: {'sealed', state}, {'mismatch', chunks, items} or {'refused', state}.
local job = ARGV[1]
at_hand = job
check(job)
local state = field(job, 'state')
if not state then return {'refused', 'missing'} end
local facts = redis.call('HMGET', job_key(job), 'staged_chunks', 'staged_items', 'sealed')
if facts[1] ~= ARGV[2] or facts[2] ~= ARGV[3] then return {'mismatch', facts[1], facts[2]} end
if facts[3] == '1' then return {'sealed', state} end
if is_final(state) then return {'refused', state} end
redis.call('HSET', job_key(job), 'sealed', 1, 'source_sum', ARGV[4])
end_starving(job)
if state == 'submitting' then redis.call('HSET', job_key(job), 'state', 'running') end
if finish_if_done(job) ~= 'ended' then keep_job(job) end
return {'sealed', field(job, 'state')}
