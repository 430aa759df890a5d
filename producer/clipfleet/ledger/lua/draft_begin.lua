-- A retry or rebuild begins to note what it will put in place of what is known of a job's chunks; what another
-- one noted is forgotten, and that one can put nothing in place any more. ARGV: job, token.
-- Answer: 1.
local job = ARGV[1]
forget_draft(job)
redis.call('SET', job_key(job, DRAFT), ARGV[2])
keep_draft(job)
return 1
