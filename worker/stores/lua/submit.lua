-- Accept a job: idempotency key, target reservation, record, event, indexes and wake-up message, all or nothing.

local id = given.id
local known = given.idempotency_key and redis.call('GET', key('idempotency', given.idempotency_key))
if not known and redis.call('EXISTS', key('job', id)) == 1 then
  known = id -- our own submit, sent again because its answer was lost
end
if known then
  return {'known', record(known)}
end

local holder = holder_of(given.target)
if holder then
  return {'reserved', holder}
end
local trouble, dependency = block(id, given.depends_on)
if trouble then
  return {trouble, dependency}
end
reserve(given.target, id)
if given.idempotency_key then
  redis.call('SET', key('idempotency', given.idempotency_key), id)
end

local sequence = redis.call('INCR', 'ferry:sequence')
set(id, given.fields)
set(id, {id = id, sequence = sequence, target = given.target, idempotency_key = given.idempotency_key})
set(id, {indexes = array(given.indexes), state = 'queued', created_at = now(), updated_at = now()})
redis.call('ZADD', ALL, sequence, id)
redis.call('ZADD', key('state', 'queued'), sequence, id)
redis.call('SADD', CLASSES, class_of(id))
for _, index in ipairs(given.indexes) do
  redis.call('ZADD', index, sequence, id)
end
tell(id, 'submitted', {})
if not blocked(id) then
  wake(id)
end
return {'new', record(id)}
