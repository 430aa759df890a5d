-- Lease the finishing of a job. ARGV: token, lease_ms, excluded jobs...
-- Answer: {} or {job, generation, fingerprint, created_ms}.
local token, now = ARGV[1], now_ms()
local excluded = {}
for i = 3, #ARGV do excluded[ARGV[i]] = true end
keep(FINISHING)  -- so that it works when Redis is full: see transitions.lua
local memory = token_key('finish:' .. token)  -- the same token may claim a chunk, too
local earlier = redis.pcall('GET', memory)
earlier = type(earlier) == 'string' and earlier
local candidates = earlier and {earlier}
  or redis.call('ZRANGEBYSCORE', FINISHING, '-inf', now, 'LIMIT', 0, 64 + #ARGV)  -- more than are excluded
for _, job in ipairs(candidates) do
  at_hand = job
  if field(job, 'state') ~= 'finishing' then
    redis.call('ZREM', FINISHING, job)
  elseif not excluded[job] and (not earlier or field(job, 'finish_token') == token) then
    check(job)
    local before = field(job, 'finish_token')
    if before and before ~= token then note_writer(job, before, now) end  -- first: its key may be of another kind
    redis.call('ZADD', FINISHING, now + tonumber(ARGV[2]), job)
    redis.call('HSET', job_key(job), 'finish_token', token)
    redis.call('SET', memory, job, 'PX', math.max(600000, tonumber(ARGV[2]) * 2))
    keep_job(job)
    return {job, field(job, 'generation'), field(job, 'fingerprint'), field(job, 'created_ms')}
  end
end
return {}
