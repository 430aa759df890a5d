-- Record how far held chunks are, for people who watch. ARGV: number of reports; job, chunk, token, items that have ended
-- and what is done now, of each; then job and token of each lease that has ended. `status.lua` ignores a lease without
-- its owner, and all of this ends with the job.
local reports = tonumber(ARGV[1])
for i = 2, 1 + 5 * reports, 5 do
  local job, chunk, token = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  at_hand = job
  if owns(job, chunk, token) then
    redis.call('HSET', job_key(job, SETTLED), token, chunk .. ' ' .. ARGV[i + 3] .. ' ' .. ARGV[i + 4])
    keep(job_key(job, SETTLED))
  end
end
for i = 2 + 5 * reports, #ARGV, 2 do
  at_hand = ARGV[i]
  redis.call('HDEL', job_key(ARGV[i], SETTLED), ARGV[i + 1])
end
return 1
