-- Add an endpoint, or replace one. ARGV: endpoint id, JSON, why it is disabled or '', most endpoints.
-- Answer: 1, or 0 if there are that many others.
local id, text, off, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if redis.call('HEXISTS', WEBHOOKS, id) == 0 and redis.call('HLEN', WEBHOOKS) >= most then return 0 end
redis.call('HSET', WEBHOOKS, id, text)
if off == '' then redis.call('HDEL', WEBHOOKS_OFF, id) else redis.call('HSET', WEBHOOKS_OFF, id, off) end
redis.call('PEXPIRE', WEBHOOKS, ENDPOINTS_KEPT_MS)
redis.call('PEXPIRE', WEBHOOKS_OFF, ENDPOINTS_KEPT_MS)
return 1
