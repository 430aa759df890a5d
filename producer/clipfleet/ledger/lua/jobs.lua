-- Name the newest jobs. ARGV: rank to start from (0: the newest), most jobs to name.
-- Answer: {rank to continue from, or -1 at the end, job, ...}. At most a thousand entries are read: expired jobs stay in
-- the index until a worker reconciles.
local MOST_LOOKED_AT = 1000
local rank, most, answer = tonumber(ARGV[1]), tonumber(ARGV[2]), {}
local jobs = redis.call('ZRANGE', JOBS, -rank - MOST_LOOKED_AT, -rank - 1)
for i = #jobs, 1, -1 do
  if #answer == most then break end
  rank = rank + 1
  if redis.call('EXISTS', job_key(jobs[i])) == 1 then answer[#answer + 1] = jobs[i] end
end
local is_end = #jobs < MOST_LOOKED_AT and #answer < most
return {is_end and -1 or rank, unpack(answer)}
