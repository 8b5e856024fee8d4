-- Keep room on a file system for an attempt: nothing, or the bytes that are free for it where they do not suffice.

local id = given.id
if not held(id, given.fence) then
  return false
end
local free = given.free_bytes - kept_bytes(given.filesystem, id)
if free < given.needed_bytes then
  return string.format('%.0f', math.max(0, free))
end
redis.call('HSET', key('disk', given.filesystem), id, string.format('%.0f', given.needed_bytes))
set(id, {disk = given.filesystem})
return false
