-- Say into how many parts a job is cut; those done before under the same fingerprint stay done.

local id = given.id
if not held(id, given.fence) then
  return false
end
local parts, open = key('parts', id), key('open_parts', id)
if redis.call('HGET', parts, 'fingerprint') ~= given.fingerprint or redis.call('HGET', parts, 'count') ~= tostring(given.count) then
  local fence = redis.call('HGET', parts, 'fence') or 0
  redis.call('DEL', parts)
  redis.call('HSET', parts, 'fingerprint', given.fingerprint, 'count', given.count, 'fence', fence)
end
redis.call('DEL', open)
for part = 0, given.count - 1 do
  redis.call('HDEL', parts, 'holder:' .. part)
  if redis.call('HEXISTS', parts, 'done:' .. part) == 0 then
    redis.call('ZADD', open, 0, part)
  end
end
return parts_of(id)
