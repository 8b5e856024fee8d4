-- Messages for another broker: {id, class, priority, id, ...}, each marked as sent.

local taken = {}
for _, id in ipairs(redis.call('ZRANGE', OUTBOX, 0, given.limit - 1)) do
  redis.call('ZREM', OUTBOX, id)
  redis.call('ZADD', woken(class_of(id), priority_of(id)), now(), id)
  for _, word in ipairs({id, class_of(id), priority_of(id)}) do
    taken[#taken + 1] = word
  end
end
for _, id in ipairs(redis.call('ZRANGE', INVITED, 0, given.limit - 1)) do
  redis.call('ZREM', INVITED, id)
  for _, word in ipairs({id, 'cpu', 'low'}) do
    taken[#taken + 1] = word
  end
end
return taken
