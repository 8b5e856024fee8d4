-- Ask for one more worker to help with a running job's parts. Whoever has jobs of its own comes later.

local id = given.id
if get(id, 'state') ~= 'running' or redis.call('ZCOUNT', key('open_parts', id), '-inf', now()) == 0 then
  return
end
if given.message then
  send(id, 'cpu', 'low')
else
  redis.call('ZADD', INVITED, now(), id)
end
