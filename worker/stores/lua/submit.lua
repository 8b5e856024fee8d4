-- Accept a job: idempotency key, target reservation, record, indexes and wake-up message, all or nothing.

local id = given.id
local known = given.idempotency_key and redis.call('GET', key('idempotency', given.idempotency_key))
if not known and redis.call('EXISTS', key('job', id)) == 1 then
  known = id -- our own submit, sent again because its answer was lost
end
if known then
  return {'known', record(known)}
end

if given.target then
  local holder = redis.call('GET', key('target', given.target))
  if holder then
    return {'reserved', holder}
  end
  redis.call('SET', key('target', given.target), id)
end
if given.idempotency_key then
  redis.call('SET', key('idempotency', given.idempotency_key), id)
end

local sequence = redis.call('INCR', 'ferry:sequence')
set(id, given.fields)
set(id, {id = id, sequence = sequence, target = given.target, state = 'queued', created_at = now(), updated_at = now()})
redis.call('ZADD', ALL, sequence, id)
redis.call('ZADD', key('state', 'queued'), sequence, id)
for _, index in ipairs(given.indexes) do
  redis.call('ZADD', index, sequence, id)
end
wake(id)
return {'new', record(id)}
