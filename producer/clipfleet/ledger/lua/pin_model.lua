-- Decide which model a job's vectors are of: the first worker that has loaded it does. ARGV: job, fingerprint ('': only
-- ask). Answer: the fingerprint that is decided, '' if there is none, or the job is unknown.
local job = ARGV[1]
at_hand = job
check(job)
if not field(job, 'state') then return '' end
if ARGV[2] ~= '' then redis.call('HSETNX', job_key(job), 'fingerprint_of_vectors', ARGV[2]) end
return field(job, 'fingerprint_of_vectors') or ''
