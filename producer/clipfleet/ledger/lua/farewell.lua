-- A worker has ended: nobody waits for it, and nobody believes that it will do the work. ARGV: worker.
redis.call('ZREM', WORKERS, ARGV[1])
redis.call('HDEL', WORKER_FACTS, ARGV[1])
return 1
