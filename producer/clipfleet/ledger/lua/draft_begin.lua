-- Begin the draft of a retry or rebuild, which replaces what is known of a job's chunks. An earlier draft is removed and
-- can no longer take effect. ARGV: job, token.
-- Answer: 1.
local job = ARGV[1]
forget_draft(job)
redis.call('SET', job_key(job, DRAFT), ARGV[2])
keep_draft(job)
return 1
