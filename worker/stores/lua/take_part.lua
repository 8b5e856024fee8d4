-- The right to write the first part that is free: {part, its fence, the job's}, or nothing.

local id = given.id
if get(id, 'state') ~= 'running' or get(id, 'cancel_requested') or get(id, 'publishing') then
  return false
end
local first
for _, part in ipairs(redis.call('ZRANGEBYSCORE', key('open_parts', id), '-inf', now())) do
  first = math.min(first or math.huge, tonumber(part))
end
if not first then
  return false
end
local fence = redis.call('HINCRBY', key('parts', id), 'fence', 1)
redis.call('HSET', key('parts', id), 'holder:' .. first, fence)
redis.call('ZADD', key('open_parts', id), now() + given.lease_ms, first)
return {first, fence, number(id, 'attempts')}
