-- Replace an endpoint that signs with other secrets from now on. ARGV: endpoint id, JSON as it was, JSON, id of a new secret
-- or '', secret, id of a secret that is used no more or ''. Answer: 1, or 0 if the endpoint is not as it was.
local id, before, after, new, secret, old = unpack(ARGV)
local text = redis.call('HGET', WEBHOOKS, id)
if text == after then return 1 end
if text ~= before then return 0 end
if new ~= '' then store_secret(id, new, secret) end
if old ~= '' then redis.pcall('HDEL', secrets_key(id), old) end
redis.call('HSET', WEBHOOKS, id, after)
keep_endpoints()
return 1
