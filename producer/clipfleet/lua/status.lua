-- What is known of a job. ARGV: job. Answer: {} or {leased, due, codes, now_ms, name, value, ...}, nothing long.
local job = ARGV[1]
local facts = redis.call('HGETALL', job_key(job))
if #facts == 0 then return {} end
local answer = {redis.call('HLEN', job_key(job, OWNERS)), redis.call('ZCARD', job_key(job, DUE)),
  redis.call('HGETALL', job_key(job, CODES)), now_ms()}
for i = 1, #facts, 2 do
  if facts[i] ~= 'spec' and facts[i] ~= 'row_schema' then
    answer[#answer + 1] = facts[i]
    answer[#answer + 1] = facts[i + 1]
  end
end
return answer
