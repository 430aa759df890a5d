-- A slice of what a retry or rebuild notes. ARGV: job, token, kind, then of kind 'done' the bitmap of the chunks
-- that are done; 'due' chunks to be claimed again; 'staged' the first chunk and the name of each staged file.
-- Answer: 1 (also where all of it is in place already), or 0 if another one has begun meanwhile.
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
