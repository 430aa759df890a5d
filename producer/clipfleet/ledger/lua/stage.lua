-- Record a staged file that is in place, and make its chunks claimable. ARGV: job, first_chunk, chunks, items, quota_items, quota_bytes.
-- Answer: {'staged'}, {'known'} for a repetition, {'gap'}, {'refused'} or {'quota', which, how much it would be}.
local job, first, chunks = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
at_hand = job
check(job)
local state = field(job, 'state')
if not state then return {'refused'} end
local member = ARGV[2] .. '-' .. ARGV[3]
if redis.call('ZSCORE', job_key(job, STAGED), member) then return {'known'} end
local is_open = state == 'submitting' or state == 'paused'
if not is_open or field(job, 'sealed') == '1' then return {'refused'} end
if first ~= number(job, 'staged_chunks') then return {'gap'} end
local which, used = full_quota(ARGV[5], ARGV[6], tonumber(ARGV[4]))
if which then return {'quota', which, used} end
redis.call('ZADD', job_key(job, STAGED), first, member)
end_starving(job)
redis.call('HINCRBY', job_key(job), 'staged_chunks', chunks)
redis.call('HINCRBY', job_key(job), 'staged_items', ARGV[4])
if is_claimable(state) then offer(job) end
keep_job(job)
return {'staged'}
