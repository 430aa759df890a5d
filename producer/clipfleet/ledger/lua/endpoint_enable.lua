-- Deliver to an endpoint again that was disabled. ARGV: endpoint id. Answer: {1 if there is one, 1 if it was disabled}.
-- Attempts that began before say nothing about the endpoint as it is now: what is under way is sent anew, and their ends
-- are ignored.
local id = ARGV[1]
if redis.call('HEXISTS', WEBHOOKS, id) == 0 then return {0, 0} end
local was_off = redis.call('HDEL', WEBHOOKS_OFF, id)
if was_off == 1 then
  local now = now_ms()
  for _, event in ipairs(redis.call('HKEYS', webhook_key(id, HOLDERS))) do
    redis.call('ZADD', webhook_key(id, PENDING), 'XX', now, event)
  end
  redis.call('UNLINK', webhook_key(id, HOLDERS))
  redis.call('HDEL', WEBHOOK_TROUBLE, id)
  keep_webhook(id)
end
return {1, was_off}
