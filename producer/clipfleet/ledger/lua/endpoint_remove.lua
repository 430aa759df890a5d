-- Remove an endpoint with its deliveries. ARGV: endpoint id. Answer: 1, or 0 if there was none.
local id = ARGV[1]
for _, suffix in ipairs(WEBHOOK_SUFFIXES) do redis.call('UNLINK', webhook_key(id, suffix)) end
redis.call('HDEL', WEBHOOKS_OFF, id)
redis.call('HDEL', WEBHOOK_TROUBLE, id)
return redis.call('HDEL', WEBHOOKS, id)
