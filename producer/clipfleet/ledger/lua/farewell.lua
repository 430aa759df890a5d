-- Remove a worker that has ended. ARGV: worker.
redis.call('ZREM', WORKERS, ARGV[1])
redis.call('HDEL', WORKER_FACTS, ARGV[1])
return 1
