-- Lease the announcement of a job's end. ARGV: lease_ms. Answer: {} or {its text}. It is leased again after each lease
-- until it is dropped: delivery is at least once.
local now = now_ms()
local text = redis.call('ZRANGEBYSCORE', ANNOUNCEMENTS, '-inf', now, 'LIMIT', 0, 1)[1]
if not text then return {} end
redis.call('ZADD', ANNOUNCEMENTS, now + tonumber(ARGV[1]), text)
keep(ANNOUNCEMENTS)
return {text}
