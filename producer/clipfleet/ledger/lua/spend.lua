-- Count items that a key of the gateway asks for, per UTC day. ARGV: name of the key, act, items, quota, act_ttl_ms.
-- An act is counted once, for as long as it is remembered; if it grows, what it has grown by. What would exceed the quota
-- is not counted. Answer: 0, or the ms until the next day, in which the quota is full again.
local total, act = spent_key(ARGV[1]), act_key(ARGV[1], ARGV[2])
local items, quota, act_ttl_ms = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local day_ms = 86400 * 1000
local more = items - tonumber(redis.call('GET', act) or '0')
if more <= 0 then return 0 end
local spent = tonumber(redis.call('GET', total) or '0') + more
local left_ms = day_ms - now_ms() % day_ms
if spent > quota then return left_ms end
redis.call('SET', total, string.format('%.0f', spent), 'PX', left_ms)
redis.call('SET', act, string.format('%.0f', items), 'PX', act_ttl_ms)
return 0
