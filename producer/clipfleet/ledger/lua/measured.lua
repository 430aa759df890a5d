-- What chunks have measured, shared by several scripts; prepended before transitions.lua.
-- Adding two dozen sums with every chunk would double the cost of a chunk. So each chunk's report, {"seconds": by step,
-- "meters": see `Meters`}, is kept as it is in the fields measured:0, measured:1, ... of the job, `measured` of them, and
-- added to the job's sums now and then: seconds:<step> and, as JSON, meters.
-- A producer may have planted anything in these fields: that must spoil nothing but the sums of its job.

local MEASURED_APART = 16

-- Names of the reports that are kept. The count may be planted.
local function measured_names(count)
  local names = {}
  for i = 1, math.min(tonumber(count or '') or 0, MEASURED_APART) do names[i] = 'measured:' .. i - 1 end
  return names
end

local function add_up(sum, more)
  for name, seconds in pairs(more) do sum[name] = (sum[name] or 0) + seconds end
end

-- Add reports to the meters of a job, '' or JSON. Answer: meters, and seconds by their fields.
local function sum_up(known, texts)
  local meters, seconds, by_field = {}, {}, {}
  pcall(function() add_up(meters, cjson.decode(known)) end)
  for _, text in ipairs(texts) do
    pcall(function()
      local report = cjson.decode(text)
      add_up(seconds, report.seconds or {})
      add_up(meters, report.meters or {})
    end)
  end
  for step, more in pairs(seconds) do by_field['seconds:' .. step] = more end
  local is_sound, sum = pcall(cjson.encode, meters)
  return is_sound and sum or '', by_field
end

local function sum_of_seconds(known, more)
  return string.format('%.6f', (tonumber(known or '') or 0) + more)
end

-- Add all reports to the sums of a job.
local function add_up_measured(job)
  local waiting = measured_names(redis.call('HGET', job_key(job), 'measured'))
  if not waiting[1] then return end
  local known = redis.call('HGET', job_key(job), 'meters') or ''
  local meters, seconds = sum_up(known, redis.call('HMGET', job_key(job), unpack(waiting)))
  redis.call('HSET', job_key(job), 'meters', meters, 'measured', 0)
  for name, more in pairs(seconds) do  -- one by one: planted ones may be more than a call takes
    redis.call('HSET', job_key(job), name, sum_of_seconds(redis.call('HGET', job_key(job), name), more))
  end
  redis.call('HDEL', job_key(job), unpack(waiting))
end
