-- Events for webhooks, shared by several scripts; prepended before transitions.lua. Server time only.
-- The id of an event stands once for each endpoint that wants it: among the pending ones (due, waiting for its next
-- attempt, or leased) or among the failed ones. Its data stands once, as long as an endpoint holds the event. Anything may
-- be planted in these keys: what cannot be read is left out.

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

local function keep_endpoints()
  redis.call('PEXPIRE', WEBHOOKS, ENDPOINTS_KEPT_MS)
  redis.call('PEXPIRE', WEBHOOKS_OFF, ENDPOINTS_KEPT_MS)
end

-- Whoever runs this may write secrets, and perhaps read none.
local function store_secret(id, secret_id, secret)
  local key = secrets_key(id)
  if redis.call('TYPE', key).ok ~= 'hash' then redis.call('UNLINK', key) end
  redis.call('HSET', key, secret_id, secret)
  redis.call('PEXPIRE', key, ENDPOINTS_KEPT_MS)
end

-- The type of an event, its time in ms and its data, a line each; empty if it is gone or cannot be read.
local function body_of(event)
  local body = redis.pcall('HGET', event_key(event), 'body')
  return type(body) == 'string' and body or ''
end

-- An endpoint needs the data of an event no more. A count that cannot be read has been planted.
local function drop_event(event)
  local left = redis.pcall('HINCRBY', event_key(event), 'held', -1)
  if type(left) == 'table' or left <= 0 then redis.call('UNLINK', event_key(event)) end
end

-- Forget an event of an endpoint.
local function forget_event(id, event)
  local removed = redis.call('ZREM', webhook_key(id, PENDING), event) + redis.call('ZREM', webhook_key(id, FAILED), event)
  for _, suffix in ipairs({ATTEMPTS, HOLDERS, ERRORS}) do redis.call('HDEL', webhook_key(id, suffix), event) end
  if removed > 0 then drop_event(event) end
end

-- Forget failures that are a week old or too many, a few more at a time than were `added`.
local function trim_failures(id, now, added)
  local key, most = webhook_key(id, FAILED), TRIMMED_AT_A_TIME + added
  local old = redis.call('ZRANGEBYSCORE', key, '-inf', now - FAILURES_KEPT_MS, 'LIMIT', 0, most)
  for _, event in ipairs(old) do forget_event(id, event) end
  local over = math.min(redis.call('ZCARD', key) - MOST_FAILED, most)
  if over > 0 then
    for _, event in ipairs(redis.call('ZRANGE', key, 0, over - 1)) do forget_event(id, event) end
  end
end

-- A count that cannot be read starts over: HINCRBY would raise.
local function count_attempt(id, event)
  local before = redis.call('HGET', webhook_key(id, ATTEMPTS), event) or ''
  redis.call('HSET', webhook_key(id, ATTEMPTS), event, (string.match(before, '^%d%d?%d?$') or 0) + 1)
end

-- List an event as failed.
local function list_failed(id, event, why, now)
  redis.call('ZREM', webhook_key(id, PENDING), event)
  redis.call('HDEL', webhook_key(id, HOLDERS), event)
  redis.call('ZADD', webhook_key(id, FAILED), now, event)
  redis.call('HSET', webhook_key(id, ERRORS), event, why)
  trim_failures(id, now, 1)
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

-- Store the data of an event for some more endpoints; what is stored already stays as it is.
local function hold_event(event, body, endpoints)
  local key = event_key(event)
  local answer = redis.pcall('HSETNX', key, 'body', body)
  if type(answer) ~= 'table' then answer = redis.pcall('HINCRBY', key, 'held', endpoints) end
  if type(answer) == 'table' then
    local is_planted = string.find(answer.err, 'WRONGTYPE', 1, true) or string.find(answer.err, 'integer', 1, true)
    if not (is_planted or string.find(answer.err, 'overflow', 1, true)) then error(answer) end
    redis.call('UNLINK', key)
    redis.call('HSET', key, 'body', body, 'held', endpoints)
  end
  keep(key)
end

local AT_A_TIME = 1000  -- Lua passes a few thousand values to a call at most

-- {first[1], second[1], first[2], ...}, where each is a list, or a value that stands for all.
local function in_turn(first, second)
  local flat, count = {}, math.max(type(first) == 'table' and #first or 0, type(second) == 'table' and #second or 0)
  for i = 1, count do
    flat[2 * i - 1] = type(first) == 'table' and first[i] or first
    flat[2 * i] = type(second) == 'table' and second[i] or second
  end
  return flat
end

-- Which of some events an endpoint is to get: {id, pending, failed (above the bound), again (they had failed before)}.
-- What is pending stays as it is.
local function news_of(endpoint, events)
  local id, ids = endpoint.id, {}
  for i, event in ipairs(events) do ids[i] = event.id end
  local news = {id = id, off = endpoint.off, pending = {}, failed = {}, again = {}}
  local waiting = redis.call('ZMSCORE', webhook_key(id, PENDING), unpack(ids))
  local failures = redis.call('ZMSCORE', webhook_key(id, FAILED), unpack(ids))
  local room = endpoint.off and 0 or MOST_PENDING - redis.call('ZCARD', webhook_key(id, PENDING))
  for i, event in ipairs(events) do
    if not waiting[i] then
      local list = #news.pending < room and news.pending or news.failed
      list[#list + 1] = event.id
      if failures[i] then news.again[#news.again + 1] = event.id else event.held = event.held + 1 end
    end
  end
  return news
end

local function add_news(news, now)
  local id = news.id
  if news.again[1] then
    redis.call('ZREM', webhook_key(id, FAILED), unpack(news.again))
    redis.call('HDEL', webhook_key(id, ATTEMPTS), unpack(news.again))
    redis.call('HDEL', webhook_key(id, ERRORS), unpack(news.again))
  end
  local why = news.off and reason_of(news.off) or 'too many deliveries were pending'
  if news.pending[1] then redis.call('ZADD', webhook_key(id, PENDING), unpack(in_turn(now, news.pending))) end
  if news.failed[1] then
    redis.call('HSET', webhook_key(id, ERRORS), unpack(in_turn(news.failed, why)))
    redis.call('ZADD', webhook_key(id, FAILED), unpack(in_turn(now, news.failed)))
    trim_failures(id, now, #news.failed)
  end
  keep_webhook(id)
end

-- Add events for the endpoints that want them: {{id, kind, policy ('' unless it is a decision), data}, ...}. What comes
-- above the bound is listed as failed. The data comes first: if a key of another kind stops this, it is repaired, and all of
-- this runs again; an event may then count as held by too many, and expires.
local function put_events(endpoints, events, now)
  for first = 1, #events, AT_A_TIME do
    local some, all_news = {unpack(events, first, math.min(first + AT_A_TIME - 1, #events))}, {}
    for _, event in ipairs(some) do event.held = 0 end
    for _, endpoint in ipairs(endpoints) do
      local wanted = {}
      for _, event in ipairs(some) do
        if wants(endpoint, event.kind, event.policy) then wanted[#wanted + 1] = event end
      end
      local news = wanted[1] and news_of(endpoint, wanted)
      if news and (news.pending[1] or news.failed[1]) then all_news[#all_news + 1] = news end
    end
    for _, event in ipairs(some) do
      if event.held > 0 then
        hold_event(event.id, event.kind .. '\n' .. string.format('%.0f', now) .. '\n' .. event.data, event.held)
      end
    end
    for _, news in ipairs(all_news) do add_news(news, now) end
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
  local events = {}
  for i = first, last, 4 do
    local status, policy, record = ARGV[i], ARGV[i + 2], ARGV[i + 3]
    stream_decision(status, policy, record)
    events[#events + 1] = {id = ARGV[i + 1], kind = 'decision.' .. status, policy = policy, data = record}
  end
  put_events(all_endpoints(), events, now_ms())
  keep(DECISIONS)
end
