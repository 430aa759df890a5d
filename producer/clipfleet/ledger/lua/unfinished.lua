-- Name the newest unfinished jobs. ARGV: most jobs to name. Answer: {unfinished jobs without a name here, job, ...}. At
-- most five thousand entries are read: ended jobs whose items are in Redis stay in the index while a retry may come.
local MOST_LOOKED_AT = 5000
local most, left_out, answer = tonumber(ARGV[1]), 0, {}
local jobs = redis.call('ZRANGE', COUNTED, -MOST_LOOKED_AT, -1)
for i = #jobs, 1, -1 do
  local state = redis.pcall('HGET', job_key(jobs[i]), 'state')
  if state and not is_final(state) then
    if #answer < most then answer[#answer + 1] = jobs[i] else left_out = left_out + 1 end
  end
end
return {left_out, unpack(answer)}
