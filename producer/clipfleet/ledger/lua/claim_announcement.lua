-- The end of a job of which its user is to be told. ARGV: lease_ms. Answer: {} or {its text}. Until it is dropped it is
-- handed out again after each lease: told twice rather than never.
local now = now_ms()
local text = redis.call('ZRANGEBYSCORE', ANNOUNCEMENTS, '-inf', now, 'LIMIT', 0, 1)[1]
if not text then return {} end
redis.call('ZADD', ANNOUNCEMENTS, now + tonumber(ARGV[1]), text)
keep(ANNOUNCEMENTS)
return {text}
