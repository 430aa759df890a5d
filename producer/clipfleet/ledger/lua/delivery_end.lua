-- Record how attempts at deliveries ended. ARGV: 'delivered', 'retry', 'failed' or 'released'; delay_ms; error; then for
-- each delivery: endpoint id, event id, token of the lease. Ignored unless the lease is the latest one.
-- Of an endpoint that was disabled meanwhile nothing is tried again.
local how, delay_ms, why = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local now = now_ms()

for i = 4, #ARGV, 3 do
  local id, event = ARGV[i], ARGV[i + 1]
  local is_ours = redis.call('HGET', webhook_key(id, HOLDERS), event) == ARGV[i + 2]
  if is_ours and redis.call('ZSCORE', webhook_key(id, PENDING), event) then
    if how == 'delivered' then
      forget_event(id, event)
      redis.call('HDEL', WEBHOOK_TROUBLE, id)
    else
      redis.call('HDEL', webhook_key(id, HOLDERS), event)
      if how ~= 'released' then
        count_attempt(id, event)
        redis.call('HSET', WEBHOOK_TROUBLE, id, why)
        keep(WEBHOOK_TROUBLE)
      end
      local off = redis.call('HGET', WEBHOOKS_OFF, id)
      if how == 'failed' or off then
        list_failed(id, event, how == 'released' and reason_of(off) or why, now)
      else
        redis.call('ZADD', webhook_key(id, PENDING), now + delay_ms, event)
        if how == 'retry' then redis.call('HSET', webhook_key(id, ERRORS), event, why) end
      end
      keep_webhook(id)
    end
  end
end
return 1
