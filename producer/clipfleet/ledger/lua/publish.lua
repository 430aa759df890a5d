-- Add an event for every endpoint that wants it. ARGV: event id, type, policy or '', data, how long it counts as published
-- in ms. Answer: 1, or 0 if it was published before.
local event, kind, policy, data, published_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if redis.call('EXISTS', published_key(event)) == 1 then return 0 end
put_events(all_endpoints(), {{id = event, kind = kind, policy = policy, data = data}}, now_ms())
redis.call('SET', published_key(event), '1', 'PX', published_ms)  -- last: what has raised before is run again
return 1
