-- Add an event for every endpoint that wants it. ARGV: event id, type, policy or '', data, how long it counts as published
-- in ms. Answer: 1, or 0 if it was published before.
local event, kind, policy, data, published_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if not redis.call('SET', published_key(event), '1', 'NX', 'PX', published_ms) then return 0 end
put_event(all_endpoints(), event, kind, policy, data, now_ms())
return 1
