-- Deliver failures again. ARGV: endpoint id, since_ms, until_ms, how many of these to skip, most of them, event ids, ...
-- Event ids take the place of the times. Answer: {how many are due again, how many were looked at}; false if the endpoint
-- is unknown or disabled.
local id, since, till, skip, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if redis.call('HEXISTS', WEBHOOKS, id) == 0 or redis.call('HEXISTS', WEBHOOKS_OFF, id) == 1 then return false end
local events, again, now = {}, 0, now_ms()
for i = 6, #ARGV do events[#events + 1] = ARGV[i] end
if not events[1] then events = redis.call('ZRANGEBYSCORE', webhook_key(id, FAILED), since, till, 'LIMIT', skip, most) end
for _, event in ipairs(events) do
  if body_of(event) ~= '' and redis.call('ZSCORE', webhook_key(id, FAILED), event) then
    redis.call('ZREM', webhook_key(id, FAILED), event)
    redis.call('HDEL', webhook_key(id, ATTEMPTS), event)
    redis.call('HDEL', webhook_key(id, ERRORS), event)
    redis.call('ZADD', webhook_key(id, PENDING), now, event)
    keep(event_key(event))
    again = again + 1
  end
end
keep_webhook(id)
return {again, #events}
