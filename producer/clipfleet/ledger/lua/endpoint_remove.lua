-- Remove an endpoint, and some of its deliveries. ARGV: endpoint id, most deliveries that one call removes.
-- Answer: {'1' if there was one, '1' if deliveries are left}.
local id, most = ARGV[1], tonumber(ARGV[2])
local was_there, removed = redis.call('HDEL', WEBHOOKS, id), 0
for _, suffix in ipairs({PENDING, FAILED}) do
  local events = removed < most and redis.call('ZRANGE', webhook_key(id, suffix), 0, most - removed - 1) or {}
  for _, event in ipairs(events) do forget_event(id, event) end
  removed = removed + #events
end
if removed < most then
  for _, suffix in ipairs(WEBHOOK_SUFFIXES) do redis.call('UNLINK', webhook_key(id, suffix)) end
end
redis.call('UNLINK', secrets_key(id))
redis.call('HDEL', WEBHOOKS_OFF, id)
redis.call('HDEL', WEBHOOK_TROUBLE, id)
redis.call('HDEL', WEBHOOK_TURNS, id)
return {was_there, removed == most and 1 or 0}
