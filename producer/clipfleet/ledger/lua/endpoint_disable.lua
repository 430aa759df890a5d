-- An attempt has found that its endpoint is gone: it has failed, and nothing more is delivered to the endpoint.
-- ARGV: endpoint id, event id, token of the lease, reason, most events that one call lists as failed.
-- Answer: 1 if more may be left. Ignored unless the lease is the latest one, but for a call that goes on with the list.
-- What is under way stays: it ends as its attempt does.
local id, event, token, reason, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local now = now_ms()
if redis.call('HGET', webhook_key(id, HOLDERS), event) == token and redis.call('HEXISTS', WEBHOOKS, id) == 1 then
  redis.call('HSET', WEBHOOKS_OFF, id, reason)
  redis.call('HSET', WEBHOOK_TROUBLE, id, reason)
  keep(WEBHOOK_TROUBLE)
  keep_endpoints()
  count_attempt(id, event)
  list_failed(id, event, reason, now)
end
if redis.call('HGET', WEBHOOKS_OFF, id) ~= reason then return 0 end
local pending, rank, listed = webhook_key(id, PENDING), 0, 0
while listed < most do
  local one, due_ms = unpack(redis.call('ZRANGE', pending, rank, rank, 'WITHSCORES'))
  if not one then break end
  if redis.call('HGET', webhook_key(id, HOLDERS), one) and tonumber(due_ms) > now then
    rank = rank + 1
  else
    list_failed(id, one, reason_of(reason), now)
    listed = listed + 1
  end
end
keep_webhook(id)
return listed == most and 1 or 0
