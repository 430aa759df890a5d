-- An announcement was sent. ARGV: its text. Repeated: nothing happens.
local is_read, event = pcall(function() return cjson.decode(ARGV[1]).event end)
if is_read and type(event) == 'table' and type(event.job_id) == 'string' then
  local generation = redis.pcall('HGET', job_key(event.job_id), 'generation')  -- or an error: it is anybody's text
  if tostring(event.generation) == generation then redis.call('HDEL', job_key(event.job_id), 'untold') end
end
return redis.call('ZREM', ANNOUNCEMENTS, ARGV[1])
