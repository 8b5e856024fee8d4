-- Keep room on a file system for an attempt: nothing, or the bytes that are free for it where they do not suffice.

local id = given.id
if not held(id, given.fence) then
  return false
end
local free = given.free_bytes
local reservations = redis.call('HGETALL', key('disk', given.filesystem))
for position = 1, #reservations, 2 do
  local other, bytes = reservations[position], tonumber(reservations[position + 1])
  if other ~= id then
    local progress = cjson.decode(get(other, 'progress') or '{}')
    free = free - math.max(0, bytes - (progress.done_bytes or 0))
  end
end
if free < given.needed_bytes then
  return string.format('%.0f', math.max(0, free))
end
redis.call('HSET', key('disk', given.filesystem), id, string.format('%.0f', given.needed_bytes))
set(id, {disk = given.filesystem})
return false
