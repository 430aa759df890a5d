-- What chunks have measured, shared by several scripts as transitions.lua is; it goes before that.
-- To add up two dozen sums with every chunk would cost as much as all else that is done for it. So each chunk's own are
-- kept as they were told, {"seconds": by step, "meters": see `Meters`}, in the fields measured:0, measured:1, ... of
-- the job, `measured` of them, and added to its sums now and then: seconds:<step> and, as JSON, meters.
-- A producer may have put anything in these fields: it may spoil its job's sums, and nothing else.

local MEASURED_APART = 16

-- The waiting ones' names. The count may be of anybody's making.
local function measured_names(count)
  local names = {}
  for i = 1, math.min(tonumber(count or '') or 0, MEASURED_APART) do names[i] = 'measured:' .. i - 1 end
  return names
end

local function add_up(sum, more)
  for name, seconds in pairs(more) do sum[name] = (sum[name] or 0) + seconds end
end

-- The meters of a job, '' or JSON, and what chunks have told. Answer: meters, and seconds by the field they belong to.
local function sum_up(known, texts)
  local meters, seconds, by_field = {}, {}, {}
  pcall(function() add_up(meters, cjson.decode(known)) end)
  for _, text in ipairs(texts) do
    pcall(function()
      local told = cjson.decode(text)
      add_up(seconds, told.seconds or {})
      add_up(meters, told.meters or {})
    end)
  end
  for step, more in pairs(seconds) do by_field['seconds:' .. step] = more end
  local is_sound, sum = pcall(cjson.encode, meters)
  return is_sound and sum or '', by_field
end

local function sum_of_seconds(known, more)
  return string.format('%.6f', (tonumber(known or '') or 0) + more)
end

-- No chunk's own waits any more.
local function add_up_measured(job)
  local waiting = measured_names(redis.call('HGET', job_key(job), 'measured'))
  if not waiting[1] then return end
  local known = redis.call('HGET', job_key(job), 'meters') or ''
  local meters, seconds = sum_up(known, redis.call('HMGET', job_key(job), unpack(waiting)))
  redis.call('HSET', job_key(job), 'meters', meters, 'measured', 0)
  for name, more in pairs(seconds) do  -- one by one: there may be more of anybody's making than a call takes
    redis.call('HSET', job_key(job), name, sum_of_seconds(redis.call('HGET', job_key(job), name), more))
  end
  redis.call('HDEL', job_key(job), unpack(waiting))
end
