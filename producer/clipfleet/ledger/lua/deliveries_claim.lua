-- Lease deliveries that are due. ARGV: token, most deliveries, lease_ms, endpoint ids to leave alone, ...
-- Answer: {endpoint id, event id, body, failed attempts, ...}; the same token gets the same ones again. Endpoints take
-- turns, the one that has waited longest first.
local token, most, lease_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now, answer, busy = now_ms(), {}, {}
for i = 4, #ARGV do busy[ARGV[i]] = true end
keep_endpoints()

local function add(id, event)
  answer[#answer + 1] = id
  answer[#answer + 1] = event
  answer[#answer + 1] = body_of(event)
  answer[#answer + 1] = redis.call('HGET', webhook_key(id, ATTEMPTS), event) or '0'
end

local held = redis.call('LRANGE', deliveries_key(token), 0, -1)
for i = 1, #held, 2 do
  if redis.call('HGET', webhook_key(held[i], HOLDERS), held[i + 1]) == token then add(held[i], held[i + 1]) end
end
if held[1] then return answer end

local LISTED_AT_A_TIME = 100

-- The time at which something of an endpoint was claimed last, in microseconds; 0 for one that no clock can have set.
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local function turn_of(id)
  local turn = tonumber(redis.call('HGET', WEBHOOK_TURNS, id) or '') or 0
  return turn > 0 and turn <= now_us and turn or 0
end

local lines = {}  -- of each endpoint: id, and its events that are due
for _, endpoint in ipairs(all_endpoints()) do
  local id = endpoint.id
  redis.call('PEXPIRE', secrets_key(id), ENDPOINTS_KEPT_MS)
  if endpoint.off then  -- whoever had these under way has ended
    local left = redis.call('ZRANGEBYSCORE', webhook_key(id, PENDING), '-inf', now, 'LIMIT', 0, LISTED_AT_A_TIME)
    for _, event in ipairs(left) do list_failed(id, event, reason_of(endpoint.off), now) end
  elseif not busy[id] then
    local due = redis.call('ZRANGEBYSCORE', webhook_key(id, PENDING), '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
    if due[1] then
      lines[#lines + 1] = {id = id, turn = turn_of(id), since = tonumber(due[2]), due = due}
      trim_failures(id, now, 0)
    end
  end
end
table.sort(lines, function(a, b)
  if a.turn ~= b.turn then return a.turn < b.turn end
  return a.since < b.since or (a.since == b.since and a.id < b.id)
end)
local count, claimed = 0, {}
for place = 1, 2 * most, 2 do
  for _, line in ipairs(lines) do
    local event = line.due[place]
    if event and count < most then
      count = count + 1
      add(line.id, event)
      redis.call('HSET', webhook_key(line.id, HOLDERS), event, token)
      redis.call('ZADD', webhook_key(line.id, PENDING), now + lease_ms, event)
      redis.call('RPUSH', deliveries_key(token), line.id, event)
      claimed[line.id] = true
    end
  end
end
redis.call('PEXPIRE', deliveries_key(token), lease_ms)
for id in pairs(claimed) do
  redis.call('HSET', WEBHOOK_TURNS, id, string.format('%.0f', now_us))
  keep_webhook(id)
end
keep(WEBHOOK_TURNS)
return answer
