-- Accept a job: idempotency key, target reservation, record, event, indexes and wake-up message, all or nothing.
-- A known job is answered with its record; a new one with what its sender cannot know.

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
local fields = given.fields
fields.id, fields.sequence, fields.target, fields.idempotency_key = id, sequence, given.target, given.idempotency_key
fields.indexes, fields.state, fields.created_at, fields.updated_at = array(given.indexes), 'queued', now(), now()
set(id, fields)
classes[id], priorities[id] = fields.class, fields.priority
redis.call('ZADD', ALL, sequence, id)
redis.call('ZADD', key('state', 'queued'), sequence, id)
redis.call('SADD', CLASSES, class_of(id))
for _, index in ipairs(given.indexes) do
  redis.call('ZADD', index, sequence, id)
end
tell(id, 'submitted', {})
if blocked(id) then
  return {'new', {fields.created_at, why_waiting(id)}}
end
wake(id)
return {'new', {fields.created_at, waits_for_slot(id)}}
