-- Deliver nothing more to an endpoint. ARGV: endpoint id, reason, most events that one call lists as failed.
-- Answer: how many are still pending.
local id, reason, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('HEXISTS', WEBHOOKS, id) == 0 then return 0 end
redis.call('HSET', WEBHOOKS_OFF, id, reason)
redis.call('PEXPIRE', WEBHOOKS_OFF, ENDPOINTS_KEPT_MS)
local now = now_ms()
for _, event in ipairs(redis.call('ZRANGE', webhook_key(id, PENDING), 0, most - 1)) do
  list_failed(id, event, 'the endpoint is disabled: ' .. reason, now)
end
keep_webhook(id)
return redis.call('ZCARD', webhook_key(id, PENDING))
