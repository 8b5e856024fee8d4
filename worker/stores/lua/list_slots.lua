-- The descriptions of the slots that are alive.

local found = {}
for _, worker_id in ipairs(redis.call('ZRANGEBYSCORE', SLOTS, '(' .. now(), '+inf')) do
  found[#found + 1] = redis.call('HGET', SLOT, worker_id)
end
return found
