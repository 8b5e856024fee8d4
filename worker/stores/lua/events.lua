-- A job's events after one of them, oldest first; nothing where there is no such job.

local id = given.id
if redis.call('EXISTS', key('job', id)) == 0 then
  return false
end
local newer = number(id, 'events') - given.after
if newer <= 0 then
  return {}
end
return redis.call('LRANGE', key('events', id), -newer, -1)
