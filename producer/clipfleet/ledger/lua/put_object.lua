-- Store an object of a job whose rows live in Redis. ARGV: job, name, data, what it may replace: '' (nothing), 'any' or
-- the sha1 of one object.
-- Answer: 1, or 0 if another object is there or the job takes no more.
local job, name, over = ARGV[1], ARGV[2], ARGV[4]
at_hand = job
check(job)
local state = field(job, 'state')
if not state or is_final(state) then return 0 end
if over ~= 'any' then
  local there = redis.call('HGET', job_key(job, ITEMS), name)
  if (there and redis.sha1hex(there) or '') ~= over then return 0 end
end
redis.call('HSET', job_key(job, ITEMS), name, ARGV[3])
keep_job(job)
return 1
