-- Keep a part: 1, or 0 where another has it, or the attempt that opened it is over.

if not part_held() then
  return 0
end
redis.call('ZADD', key('open_parts', given.id), now() + given.lease_ms, given.number)
return 1
