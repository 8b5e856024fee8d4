-- The ways a job changes state, and the messages that wake workers.

local function leave(id, state)
  release_devices(id)
  release_hold(id)
  local disk = get(id, 'disk')
  if disk then
    redis.call('HDEL', key('disk', disk), id)
  end
  redis.call('HDEL', key('job', id), unpack(STATE_FIELDS))
  redis.call('ZREM', key('state', state), id)
  for _, index in ipairs({LEASES, WAITING, OUTBOX, ENDED, woken(class_of(id), priority_of(id))}) do
    redis.call('ZREM', index, id)
  end
end

-- Leave the old state and enter the new one; `fields` are what is true in it.
local function move(id, state, fields)
  leave(id, get(id, 'state'))
  set(id, {state = state, updated_at = now()})
  set(id, fields)
  redis.call('ZADD', key('state', state), get(id, 'sequence'), id)
end

-- Send the Celery message. Consumers pop from the list's other end.
local function send(id, class, priority)
  local tag = id .. ':' .. redis.call('INCR', 'ferry:messages')
  local message = string.gsub(given.message, '"@step@"', STEPS[priority])
  message = string.gsub(message, '@(%a+)@', {job = id, tag = tag, queue = queue_of(class)})
  redis.call('LPUSH', broker_list(class, priority), message)
end

-- Wake a worker, or leave that to those who send through another broker.
local function wake(id)
  local class, priority = class_of(id), priority_of(id)
  redis.call('ZREM', WAITING, id)
  if not given.message then
    redis.call('ZADD', OUTBOX, now(), id)
    return
  end
  send(id, class, priority)
  redis.call('ZADD', woken(class, priority), now(), id)
end

-- Other jobs wait for this one: go on with them, or end them too.
local function tell_dependents(id, succeeded, fail)
  local dependents = redis.call('SMEMBERS', key('dependents', id))
  table.sort(dependents, function(one, other)
    return number(one, 'sequence') < number(other, 'sequence')
  end)
  for _, dependent in ipairs(dependents) do
    redis.call('SREM', key('blockers', dependent), id)
    if get(dependent, 'state') == 'queued' then
      if not succeeded then
        fail(dependent, string.gsub(given.dependency_failed, '@job@', (string.gsub(id, '%%', '%%%%'))))
      elseif redis.call('SCARD', key('blockers', dependent)) == 0 then
        wake(dependent)
      end
    end
  end
  redis.call('DEL', key('dependents', id))
end

local function unblock(id)
  for _, blocker in ipairs(redis.call('SMEMBERS', key('blockers', id))) do
    redis.call('SREM', key('dependents', blocker), id)
  end
  redis.call('DEL', key('blockers', id))
end

-- Enter a terminal state, and free the target for others.
local function finish(id, state, fields)
  move(id, state, fields)
  unblock(id)
  redis.call('ZADD', ENDED, now(), id)
  redis.call('DEL', key('parts', id), key('open_parts', id))
  redis.call('ZREM', INVITED, id)
  if state ~= 'succeeded' and number(id, 'attempts') > 0 then
    redis.call('HSET', UNCLEAN, id, number(id, 'attempts'))
  end
  local target = get(id, 'target')
  if target and redis.call('GET', key('target', target)) == id then
    redis.call('DEL', key('target', target))
  end
  tell(id, state, {error = fields.error and cjson.decode(fields.error)})
  tell_dependents(id, state == 'succeeded', function(dependent, why)
    finish(dependent, 'failed', {error = why})
  end)
end

local function queue_again(id, ready_at, fields)
  move(id, 'queued', fields)
  redis.call('ZADD', WAITING, ready_at, id)
end

-- An attempt vanished: counted apart from failures, with a cap of its own.
local function lose(id, error)
  local losses = redis.call('HINCRBY', key('job', id), 'losses', 1)
  redis.call('HSET', UNCLEAN, id, number(id, 'attempts'))
  tell(id, 'lost', {error = cjson.decode(error), worker_id = get(id, 'worker_id')})
  if get(id, 'cancel_requested') then
    finish(id, 'cancelled', {})
  elseif losses >= number(id, 'max_losses') then
    finish(id, 'failed', {error = error})
  else
    queue_again(id, now(), {last_error = error})
  end
end

-- Wait for those of `depends_on` that have not succeeded yet; answers the first that never will, or does not exist.
local function block(id, depends_on)
  for _, dependency in ipairs(depends_on) do
    local state = get(dependency, 'state')
    if not state then
      return 'unknown', dependency
    elseif state == 'failed' or state == 'cancelled' then
      return 'ended', dependency
    end
  end
  for _, dependency in ipairs(depends_on) do
    if get(dependency, 'state') ~= 'succeeded' then
      redis.call('SADD', key('blockers', id), dependency)
      redis.call('SADD', key('dependents', dependency), id)
    end
  end
end

local function blocked(id)
  return redis.call('EXISTS', key('blockers', id)) == 1
end

local function holder_of(target)
  return target and redis.call('GET', key('target', target))
end

local function reserve(target, id)
  if target then
    redis.call('SET', key('target', target), id)
  end
end
