-- Decide which model a job's vectors are of: the first worker that has loaded it does. ARGV: job, fingerprint.
-- Answer: the fingerprint that is decided, '' if the job is unknown.
local job = ARGV[1]
at_hand = job
check(job)
if not field(job, 'state') then return '' end
redis.call('HSETNX', job_key(job), 'fingerprint_of_vectors', ARGV[2])
return field(job, 'fingerprint_of_vectors')
