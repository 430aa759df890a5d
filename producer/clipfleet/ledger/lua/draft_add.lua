-- Add a slice to the draft of a retry or rebuild. ARGV: job, token, kind, then for 'done' the bitmap of the chunks that
-- are done; for 'due' the chunks to be claimed again; for 'staged' the first chunk and the name of each staged file.
-- Answer: 1 (also if the draft is in place already), or 0 if a later draft has begun.
local job, kind = ARGV[1], ARGV[3]
at_hand = job
if field(job, 'draft_token') == ARGV[2] then return 1 end
if redis.pcall('GET', job_key(job, DRAFT)) ~= ARGV[2] then return 0 end
if kind == 'done' then
  redis.call('SET', job_key(job, DRAFT_DONE), ARGV[4])
elseif kind == 'due' then
  for i = 4, #ARGV do redis.call('ZADD', job_key(job, DRAFT_DUE), 0, ARGV[i]) end
else
  for i = 4, #ARGV, 2 do redis.call('ZADD', job_key(job, DRAFT_STAGED), ARGV[i], ARGV[i + 1]) end
end
keep_draft(job)
return 1
