-- Restart an ended job in a new generation with its draft (see draft_begin). ARGV: job, token, generation,
-- error codes to retry (comma-separated, '' for all), max_error_rate ('': as it was), next_chunk, ok, failed, code, count, ...
-- Answer: {'started', state} (also to a repetition), {'refused', state} (it is not over), {'taken', state}
-- (a later retry has begun), {'damaged', state} (see guard.lua) or {'missing', ''}.
local job, token = ARGV[1], ARGV[2]
at_hand = job
check(job)
check_draft(job)
local state = field(job, 'state')
if not state then return {'missing', ''} end
if field(job, 'draft_token') == token then return {'started', state} end
if not is_final(state) then return {'refused', state} end
if field(job, 'damaged') then return {'damaged', state} end
if redis.pcall('GET', job_key(job, DRAFT)) ~= token then return {'taken', state} end
redis.call('HSET', job_key(job), 'state', field(job, 'sealed') == '1' and 'running' or 'submitting',
  'generation', ARGV[3], 'retry_codes', ARGV[4], 'reason', '')
redis.call('HDEL', job_key(job), 'finished_ms', 'finish_token', 'outage_since')
if ARGV[5] ~= '' then redis.call('HSET', job_key(job), 'max_error_rate', ARGV[5]) end
apply_draft(job, 6)
go_on(job)
return {'started', field(job, 'state')}
