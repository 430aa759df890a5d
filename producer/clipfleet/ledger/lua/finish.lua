-- End a job whose manifest, errors and _SUCCESS are written. ARGV: job, generation, ttl_ms, token.
-- Answer: the final state, 'stale' or 'missing'. Idempotent: a repetition sends no second event.
local job = ARGV[1]
at_hand = job
check(job)
local state = field(job, 'state')
if not state then return 'missing' end
redis.call('ZREM', job_key(job, WRITERS), ARGV[4])
if field(job, 'generation') ~= ARGV[2] then return 'stale' end
if is_final(state) then return state end
if state ~= 'finishing' then return 'stale' end
end_job(job, complete_state(job), '', tonumber(ARGV[3]))
redis.call('ZREM', job_key(job, WRITERS), ARGV[4])
return field(job, 'state')
