-- Failures of an endpoint, the latest first. ARGV: endpoint id, most failures.
-- Answer: {event id, failed_ms, type, failed attempts, error, ...}.
local id, answer, now = ARGV[1], {}, now_ms()
local flat = redis.call('ZREVRANGEBYSCORE', webhook_key(id, FAILED), '+inf', now - FAILURES_KEPT_MS, 'WITHSCORES', 'LIMIT', 0,
  ARGV[2])
for i = 1, #flat, 2 do
  local event = flat[i]
  for _, value in ipairs({event, flat[i + 1], string.match(body_of(event), '^[^\n]*'),
    redis.call('HGET', webhook_key(id, ATTEMPTS), event) or '0', redis.call('HGET', webhook_key(id, ERRORS), event) or ''}) do
    answer[#answer + 1] = value
  end
end
return answer
