-- Release a chunk that is not complete. ARGV: job, chunk, token, kind, first_back_off_ms, reason, outage_ms.
-- kind: 'failures' (a bug of ours), 'waits' (an outage) or 'drain' (a worker drains: due at once, no outage).
-- Answer: {'released', times}, {'paused', times} (the outage lasted too long), {'not_held', 0}.
local job, chunk, token, kind = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
at_hand = job
redis.call('ZREM', job_key(job, WRITERS), token)
if not owns(job, chunk, token) then return {'not_held', 0} end
check(job)
local now, word = now_ms(), 'released'
drop_pending(job, token)
local times = count_trouble(job, chunk, kind == 'drain' and 'waits' or kind)
local most_ms = kind == 'waits' and MOST_WAIT_MS or MOST_BACK_OFF_MS
release_chunk(job, chunk, kind == 'drain' and now or now + back_off_ms(tonumber(ARGV[5]), times, most_ms))
if kind == 'waits' and is_claimable(field(job, 'state')) and note_outage(job, ARGV[6], tonumber(ARGV[7])) then
  word = 'paused'
  withdraw(job)
  redis.call('HSET', job_key(job), 'state', 'paused')
end
keep_job(job)
return {word, times}
