-- Workers whose last heartbeat is at most silence_ms old. ARGV: silence_ms. Answer: {facts, ms since the
-- heartbeat, ...}.
local answer, now = {}, now_ms()
local found = redis.call('ZRANGEBYSCORE', WORKERS, now - tonumber(ARGV[1]), '+inf', 'WITHSCORES')
for i = 1, #found, 2 do
  answer[#answer + 1] = redis.call('HGET', WORKER_FACTS, found[i]) or '{}'
  answer[#answer + 1] = math.max(0, now - tonumber(found[i + 1]))
end
return answer
