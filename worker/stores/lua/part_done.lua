-- Record a finished part: 1, or 0 where it is no longer its writer's.

if not part_held() then
  return 0
end
redis.call('ZREM', key('open_parts', given.id), given.number)
redis.call('HSET', key('parts', given.id), 'done:' .. given.number, given.left_behind)
return 1
