-- End a job early. ARGV: job, state ('cancelled' or 'failed'), reason, ttl_ms; of a failed one its generation.
-- Answer: {changed, state}. A job that is finishing or over stays as it is (a finishing one can still fail), and so
-- does one that was retried since it failed.
local job = ARGV[1]
at_hand = job
check(job)
local state = field(job, 'state')
if not state then return {0, 'missing'} end
if is_final(state) or (state == 'finishing' and ARGV[2] == 'cancelled') then return {0, state} end
if ARGV[5] and field(job, 'generation') ~= ARGV[5] then return {0, state} end
end_job(job, ARGV[2], ARGV[3], tonumber(ARGV[4]))
return {1, ARGV[2]}
