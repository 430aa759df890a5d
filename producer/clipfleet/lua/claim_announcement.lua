-- An ended job whose user wants to be told. ARGV: lease_ms. Answer: its text, or false if none is due.
-- Until it is dropped it is handed out again after each lease: told twice rather than never.
local now = now_ms()
local text = redis.call('ZRANGEBYSCORE', ANNOUNCEMENTS, '-inf', now, 'LIMIT', 0, 1)[1]
if not text then return false end
redis.call('ZADD', ANNOUNCEMENTS, now + tonumber(ARGV[1]), text)
keep(ANNOUNCEMENTS)
return text
