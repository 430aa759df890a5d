-- An announcement was sent. ARGV: its text. Repeated: nothing happens.
return redis.call('ZREM', ANNOUNCEMENTS, ARGV[1])
