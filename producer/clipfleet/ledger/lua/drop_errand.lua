-- Remove an errand that is done. ARGV: the text of an announcement, or a job and its sweeps_left as they were claimed.
-- Idempotent.
local errand, left = ARGV[1], tonumber(ARGV[2])
if not left then
  local is_read, event = pcall(function() return cjson.decode(errand).event end)
  if is_read and type(event) == 'table' and type(event.job_id) == 'string' then
    local generation = redis.pcall('HGET', job_key(event.job_id), 'generation')  -- may be an error: the text may be planted
    if tostring(event.generation) == generation then redis.call('HDEL', job_key(event.job_id), 'untold') end
  end
  return redis.call('ZREM', ANNOUNCEMENTS, errand)
end
at_hand = errand
if number(errand, 'sweeps_left') ~= left then return 0 end
redis.call('HSET', job_key(errand), 'sweeps_left', left - 1)
if left > 1 then
  redis.call('ZADD', SWEEPS, 'XX', now_ms() + SWEEP_AGAIN_MS, errand)
else
  redis.call('ZREM', SWEEPS, errand)
end
return 1
