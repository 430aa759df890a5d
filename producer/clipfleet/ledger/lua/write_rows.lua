-- Store rows of a chunk, invisible until `complete`. ARGV: job, chunk, token, generation, keep_ms,
-- schema, #rows, item_index, row, ..., #vectors, item_index, vector, ..., #ids, item_id, lowest item_index, ...
-- Answer: 'written', or why nothing was: 'already', 'stale', 'cancelled' or 'missing'.
local job, chunk, token = ARGV[1], ARGV[2], ARGV[3]
at_hand = job
local refused = refusal(job, chunk, ARGV[4], unpack(redis.call('HMGET', job_key(job), 'state', 'next_chunk', 'generation')))
if refused then
  drop_pending(job, token)
  return refused
end
for _, suffix in ipairs(PENDING_SUFFIXES) do
  -- Planted: `complete` will miss earlier rows, and have all of them written again.
  if type(redis.pcall('HLEN', pending_key(job, token, suffix))) == 'table' then drop_pending(job, token) end
end
redis.call('HSETNX', job_key(job), 'row_schema', ARGV[6])
local position = 7
for _, suffix in ipairs(PENDING_SUFFIXES) do
  local last = position + 2 * tonumber(ARGV[position])
  if last > position then
    local key = pending_key(job, token, suffix)
    redis.call('HSET', key, unpack(ARGV, position + 1, last))
    redis.call('PEXPIRE', key, ARGV[5])
  end
  position = last + 1
end
return 'written'
