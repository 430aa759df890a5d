-- Add an endpoint. ARGV: endpoint id, JSON, most endpoints, secret id, secret. Answer: 1, or 0 if there are that many others.
local id, text, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('HEXISTS', WEBHOOKS, id) == 0 and redis.call('HLEN', WEBHOOKS) >= most then return 0 end
store_secret(id, ARGV[4], ARGV[5])
redis.call('HSET', WEBHOOKS, id, text)
keep_endpoints()
return 1
