-- Keep an object of a job that lives here. ARGV: job, name, data, 1 if it may replace another.
-- Answer: 1, or 0 if there is one of this name or the job takes nothing any more.
local job, name = ARGV[1], ARGV[2]
local state = field(job, 'state')
if not state or is_final(state) then return 0 end
if ARGV[4] ~= '1' and redis.call('HEXISTS', job_key(job, ITEMS), name) == 1 then return 0 end
redis.call('HSET', job_key(job, ITEMS), name, ARGV[3])
keep_job(job)
return 1
