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
local leased = redis.call('HLEN', job_key(job, OWNERS))
local answer = {leased, redis.call('ZCARD', job_key(job, DUE)),
  redis.call('HGETALL', job_key(job, CODES)), now_ms()}
-- What is added below is no field of the job: a planted one must not stand for it.
local is_left_out = {spec = true, row_schema = true, brief = true, settled = true}
for name, value in pairs(facts) do
  if not (is_left_out[name] or string.find(name, '^measured') or string.find(name, '^doing:')) then
    answer[#answer + 1] = name
    answer[#answer + 1] = value
  end
end
if ARGV[2] == 'brief' then
  local spec = facts.brief and '' or redis.pcall('GET', job_key(job, SPEC))
  answer[#answer + 1] = facts.brief and 'brief' or 'spec'
  answer[#answer + 1] = facts.brief or type(spec) == 'string' and spec or ''
end

-- How far held chunks are, see report.lua: the items that have ended, and for how many chunks what is done now. A
-- producer may have planted anything.
local MOST_REPORTS, STEP = 10000, 1000

local function add_reports()
  local key = job_key(job, SETTLED)
  local count = redis.pcall('HLEN', key)
  if type(count) ~= 'number' or count == 0 or count > MOST_REPORTS then return end
  local reports, chunks, settled, doing = redis.call('HGETALL', key), {}, 0, {}
  for i = 2, #reports, 2 do chunks[i / 2] = string.match(reports[i], '^%d+') or '' end
  for first = 1, #chunks, STEP do
    local last = math.min(first + STEP - 1, #chunks)
    for i, owner in ipairs(redis.call('HMGET', job_key(job, OWNERS), unpack(chunks, first, last))) do
      local at = 2 * (first + i - 1)
      local items, words = string.match(reports[at], '^%d+ (%d%d?%d?%d?) ([\32-\126]*)$')
      if items and owner == reports[at - 1] and #words <= 200 then
        settled = settled + items
        doing[words] = (doing[words] or 0) + 1
      end
    end
  end
  answer[#answer + 1] = 'settled'
  answer[#answer + 1] = string.format('%d', settled)
  for words, times in pairs(doing) do
    answer[#answer + 1] = 'doing:' .. words
    answer[#answer + 1] = times
  end
end

if leased > 0 then add_reports() end
return answer
