-- Workers whose last heartbeat is at most silence_ms old. ARGV: silence_ms. Answer: {facts, ...}.
local answer = {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, now_ms() - tonumber(ARGV[1]), '+inf')) do
  answer[#answer + 1] = redis.call('HGET', WORKER_FACTS, worker) or '{}'
end
return answer
