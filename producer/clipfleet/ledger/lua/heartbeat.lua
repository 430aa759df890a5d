-- Record that a worker is alive. ARGV: worker, facts (JSON).
keep(WORKERS)  -- so that it works when Redis is full: see transitions.lua
redis.call('ZADD', WORKERS, now_ms(), ARGV[1])
redis.call('HSET', WORKER_FACTS, ARGV[1], ARGV[2])
keep(WORKERS)
keep(WORKER_FACTS)
return 1
