-- Take, renew or give back a lock. ARGV: its name, the token of its holder, ttl_ms (0: give it back).
-- Answer: 1 if the holder has it (or has given it back), 0 if another one has it.
local name, token, ttl_ms = lock_key(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local holder = redis.call('GET', name)
if ttl_ms == 0 then
  if holder == token then redis.call('UNLINK', name) end
  return 1
end
if holder and holder ~= token then return 0 end
redis.call('SET', name, token, 'PX', ttl_ms)
return 1
