-- All short facts about a job. ARGV: job, what to add ('brief': that or, if the job has none, its spec). Answer: {} or {leased, due, codes, now_ms, name, value, ...}.
local job = ARGV[1]
at_hand = job
local flat = redis.call('HGETALL', job_key(job))
if #flat == 0 then return {} end
local facts = {}
for i = 1, #flat, 2 do facts[flat[i]] = flat[i + 1] end
local waiting = {}
for i, name in ipairs(measured_names(facts.measured)) do waiting[i] = facts[name] or '' end
if waiting[1] then
  local meters, seconds = sum_up(facts.meters or '', waiting)
  facts.meters = meters
  for name, more in pairs(seconds) do facts[name] = sum_of_seconds(facts[name], more) end
end
local answer = {redis.call('HLEN', job_key(job, OWNERS)), redis.call('ZCARD', job_key(job, DUE)),
  redis.call('HGETALL', job_key(job, CODES)), now_ms()}
for name, value in pairs(facts) do
  if name ~= 'spec' and name ~= 'row_schema' and name ~= 'brief' and not string.find(name, '^measured') then
    answer[#answer + 1] = name
    answer[#answer + 1] = value
  end
end
if ARGV[2] == 'brief' then
  local spec = facts.brief and '' or redis.pcall('GET', job_key(job, SPEC))
  answer[#answer + 1] = facts.brief and 'brief' or 'spec'
  answer[#answer + 1] = facts.brief or type(spec) == 'string' and spec or ''
end
return answer
