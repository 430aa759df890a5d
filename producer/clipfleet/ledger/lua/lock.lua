-- Take, renew or give back a lock. ARGV: its name, the token of its holder, ttl_ms (0: give it back), 1 to renew it.
-- Answer: 1 if the holder has it (or has given it back), 0 if another one has it. One that is renewed is lost as soon as
-- it has ended: others may have had it since.
local name, token, ttl_ms, is_renewed = lock_key(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local holder = redis.call('GET', name)
if ttl_ms == 0 then
  if holder == token then redis.call('UNLINK', name) end
  return 1
end
if holder ~= token and (holder or is_renewed) then return 0 end
redis.call('SET', name, token, 'PX', ttl_ms)
return 1
