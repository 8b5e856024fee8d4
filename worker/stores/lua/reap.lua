-- The safety net: lost leases, jobs whose time has come, jobs whose message was lost, records past their retention.
-- Answers the ids of jobs that it queued, ended or woke.

local touched = {}

local function each(index, up_to, action)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', up_to, 'LIMIT', 0, given.limit)) do
    action(id)
    touched[#touched + 1] = id
  end
end

-- Messages leave a list in the order in which they came: a job woken before the oldest one that waits there has lost
-- its own. A message that was popped this moment is not lost: it gets `patience_ms` until its claim.
local function lost_before(class, priority)
  local bound = now() - given.patience_ms
  if not given.message then
    return given.empty_queues[queue_of(class)] and bound or 0
  end
  local oldest = redis.call('LINDEX', broker_list(class, priority), -1)
  if not oldest then
    return bound
  end
  local sent = redis.call('ZSCORE', woken(class, priority), cjson.decode(oldest).headers.id)
  return sent and math.min(bound, sent - given.patience_ms) or 0
end

-- Version 1 had one queue, and one index of woken jobs.
local function adopt_version_1()
  each('ferry:woken', '+inf', function(id)
    redis.call('ZREM', 'ferry:woken', id)
    wake(id)
  end)
  redis.call('SADD', CLASSES, 'cpu')
  redis.call('DEL', 'ferry')
end

local function forget(id)
  if redis.call('HEXISTS', UNCLEAN, id) == 1 then
    return
  end
  local known = get(id, 'idempotency_key')
  if known then
    redis.call('DEL', key('idempotency', known))
  end
  for _, index in ipairs(cjson.decode(get(id, 'indexes') or '[]')) do
    redis.call('ZREM', index, id)
  end
  for _, index in ipairs({ALL, ENDED, key('state', get(id, 'state'))}) do
    redis.call('ZREM', index, id)
  end
  redis.call('DEL', key('job', id), key('events', id))
end

if redis.call('EXISTS', 'ferry:woken') == 1 then
  adopt_version_1()
end
each(LEASES, now(), function(id) lose(id, given.lost) end)
each(WAITING, now(), wake)
for _, class in ipairs(redis.call('SMEMBERS', CLASSES)) do
  for _, priority in ipairs(PRIORITIES) do
    each(woken(class, priority), lost_before(class, priority), function(id)
      redis.call('ZREM', woken(class, priority), id)
      wake(id)
    end)
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', ENDED, '-inf', now() - given.retention_ms, 'LIMIT', 0, given.limit)) do
  forget(id)
end
for _, worker_id in ipairs(redis.call('ZRANGEBYSCORE', SLOTS, '-inf', now())) do
  redis.call('HDEL', SLOT, worker_id)
  redis.call('ZREM', SLOTS, worker_id)
end
return touched
