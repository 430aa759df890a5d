-- Deliver nothing more to an endpoint. ARGV: endpoint id, reason, most events that one call lists as failed.
-- Answer: 1 if more may be left. What is under way stays: it ends as its attempt does.
local id, reason, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('HEXISTS', WEBHOOKS, id) == 0 then return 0 end
redis.call('HSET', WEBHOOKS_OFF, id, reason)
redis.call('PEXPIRE', WEBHOOKS_OFF, ENDPOINTS_KEPT_MS)
local now = now_ms()
local pending, rank, listed = webhook_key(id, PENDING), 0, 0
while listed < most do
  local event, due_ms = unpack(redis.call('ZRANGE', pending, rank, rank, 'WITHSCORES'))
  if not event then break end
  if redis.call('HGET', webhook_key(id, HOLDERS), event) and tonumber(due_ms) > now then
    rank = rank + 1
  else
    list_failed(id, event, reason_of(reason), now)
    listed = listed + 1
  end
end
keep_webhook(id)
return listed == most and 1 or 0
