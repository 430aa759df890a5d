-- Events for webhooks, shared by several scripts; prepended before transitions.lua. Server time only.
-- An event stands once for each endpoint that wants it, under its id: among the pending ones (due, waiting for its next
-- attempt, or leased) or among the failed ones. Anything may be planted in these keys: what cannot be read is left out.

-- Unfinished jobs and the shared keys expire this long after the last script that wrote them, within an hour.
local KEEP_MS = 30 * 86400 * 1000

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function keep(key)
  redis.call('PEXPIRE', key, KEEP_MS)
end

local ENDPOINTS_KEPT_MS = 400 * 86400 * 1000  -- from the last call of a worker or a user on
local FAILURES_KEPT_MS = 7 * 86400 * 1000
local MOST_PENDING, MOST_FAILED = 100000, 100000  -- of an endpoint
local TRIMMED_AT_A_TIME = 100

local function keep_webhook(id)
  for _, suffix in ipairs(WEBHOOK_SUFFIXES) do keep(webhook_key(id, suffix)) end
end

-- Forget an event of an endpoint.
local function forget_event(id, event)
  redis.call('ZREM', webhook_key(id, PENDING), event)
  redis.call('ZREM', webhook_key(id, FAILED), event)
  for _, suffix in ipairs({BODIES, ATTEMPTS, HOLDERS, ERRORS}) do redis.call('HDEL', webhook_key(id, suffix), event) end
end

-- Forget failures that are a week old or too many, a few at a time.
local function trim_failures(id, now)
  local key = webhook_key(id, FAILED)
  local old = redis.call('ZRANGEBYSCORE', key, '-inf', now - FAILURES_KEPT_MS, 'LIMIT', 0, TRIMMED_AT_A_TIME)
  for _, event in ipairs(old) do forget_event(id, event) end
  local over = math.min(redis.call('ZCARD', key) - MOST_FAILED, TRIMMED_AT_A_TIME)
  if over > 0 then
    for _, event in ipairs(redis.call('ZRANGE', key, 0, over - 1)) do forget_event(id, event) end
  end
end

-- List an event as failed.
local function list_failed(id, event, why, now)
  redis.call('ZREM', webhook_key(id, PENDING), event)
  redis.call('HDEL', webhook_key(id, HOLDERS), event)
  redis.call('ZADD', webhook_key(id, FAILED), now, event)
  redis.call('HSET', webhook_key(id, ERRORS), event, why)
  trim_failures(id, now)
end

-- Why a delivery to an endpoint that is disabled has failed.
local function reason_of(off)
  return 'the endpoint is disabled: ' .. off
end

-- The endpoints as they are now: {{id, events = {type = true} or nil, policies likewise, off = reason or nil}, ...}.
local function all_endpoints()
  local found, flat = {}, redis.call('HGETALL', WEBHOOKS)
  local function set_of(list)
    if type(list) ~= 'table' or #list == 0 then return nil end
    local set = {}
    for _, name in ipairs(list) do
      if type(name) == 'string' then set[name] = true end
    end
    return set
  end
  for i = 1, #flat, 2 do
    local is_read, facts = pcall(cjson.decode, flat[i + 1])
    if is_read and type(facts) == 'table' then
      found[#found + 1] = {id = flat[i], events = set_of(facts.events), policies = set_of(facts.policies),
        off = redis.call('HGET', WEBHOOKS_OFF, flat[i]) or nil}
    end
  end
  return found
end

local function wants(endpoint, kind, policy)
  if endpoint.events and not endpoint.events[kind] then return false end
  return policy == '' or not endpoint.policies or endpoint.policies[policy] or false
end

-- Add an event for the endpoints that want it; `policy` is '' unless it is a decision. An event that is pending stays as it
-- is. What comes above the bound is listed as failed, without its data.
local function put_event(endpoints, event, kind, policy, data, now)
  for _, endpoint in ipairs(endpoints) do
    if wants(endpoint, kind, policy) then
      local id = endpoint.id
      local head = kind .. '\n' .. string.format('%.0f', now)
      if redis.call('ZSCORE', webhook_key(id, PENDING), event) then
        head = nil
      elseif redis.call('ZCARD', webhook_key(id, PENDING)) >= MOST_PENDING then
        redis.call('HSET', webhook_key(id, BODIES), event, head)
        list_failed(id, event, 'too many deliveries were pending', now)
      else
        redis.call('ZREM', webhook_key(id, FAILED), event)
        redis.call('HDEL', webhook_key(id, ATTEMPTS), event)
        redis.call('HSET', webhook_key(id, BODIES), event, head .. '\n' .. data)
        if endpoint.off then
          list_failed(id, event, reason_of(endpoint.off), now)
        else
          redis.call('ZADD', webhook_key(id, PENDING), now, event)
        end
      end
      if head and not endpoint.is_kept then
        keep_webhook(id)
        endpoint.is_kept = true  -- in this call
      end
    end
  end
end

-- Add decisions to the stream, and for the endpoints that want them. ARGV[first] to ARGV[last]: status, event id, policy,
-- record, ... It runs again if a key of another kind has stopped it: the stream may then have some twice.
local MOST_DECISIONS = 100000

-- A stream takes no entry after the highest possible ID, which somebody has planted: it begins anew.
local function stream_decision(status, policy, record)
  for _ = 1, 2 do
    local added = redis.pcall('XADD', DECISIONS, 'MAXLEN', '~', MOST_DECISIONS, '*', 'status', status, 'policy', policy,
      'record', record)
    if type(added) ~= 'table' then return end
    if not string.find(added.err, 'possible ID', 1, true) then error(added) end
    redis.call('UNLINK', DECISIONS)
  end
end

local function announce_decisions(first, last)
  local now, endpoints = now_ms(), all_endpoints()
  for i = first, last, 4 do
    local status, policy, record = ARGV[i], ARGV[i + 2], ARGV[i + 3]
    stream_decision(status, policy, record)
    put_event(endpoints, ARGV[i + 1], 'decision.' .. status, policy, record, now)
  end
  keep(DECISIONS)
end

