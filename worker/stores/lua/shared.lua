-- What every transition shares: its arguments, the keys, the server's clock and the ways a job changes state.
-- All keys live on one server; kombu's broker does not work on Redis Cluster either.

local given = cjson.decode(ARGV[1])

local ALL = 'ferry:jobs'         -- every job, by its sequence number: the newest has the largest
local LEASES = 'ferry:leases'    -- running jobs, by the end of their lease
local WAITING = 'ferry:waiting'  -- queued jobs without a message, by the time from which they may start
local WOKEN = 'ferry:woken'      -- queued jobs with a message, by the time it was sent

-- What is true in one state only; a job that leaves the state loses these fields.
local STATE_FIELDS = {
  'not_before', 'last_error',                                         -- queued
  'worker_id', 'lease_expires_at', 'progress', 'cancel_requested',    -- running
  'result', 'error',                                                  -- succeeded, failed
}

local function key(kind, name)
  return 'ferry:' .. kind .. ':' .. name
end

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function get(id, field)
  return redis.call('HGET', key('job', id), field)
end

local function number(id, field)
  return tonumber(get(id, field) or 0)
end

local function set(id, fields)
  for field, value in pairs(fields) do
    redis.call('HSET', key('job', id), field, value)
  end
end

local function record(id)
  return redis.call('HGETALL', key('job', id))
end

local function leave(id, state)
  redis.call('HDEL', key('job', id), unpack(STATE_FIELDS))
  redis.call('ZREM', key('state', state), id)
  for _, index in ipairs({LEASES, WAITING, WOKEN}) do
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

-- Enter a state without a way out, and free the target for others.
local function finish(id, state, fields)
  move(id, state, fields)
  local target = get(id, 'target')
  if target and redis.call('GET', key('target', target)) == id then
    redis.call('DEL', key('target', target))
  end
end

local function queue_again(id, ready_at, fields)
  move(id, 'queued', fields)
  redis.call('ZADD', WAITING, ready_at, id)
end

-- A lease ran out: counted apart from failures, with a cap of its own.
local function lose(id)
  local losses = redis.call('HINCRBY', key('job', id), 'losses', 1)
  if get(id, 'cancel_requested') then
    finish(id, 'cancelled', {})
  elseif losses >= number(id, 'max_losses') then
    finish(id, 'failed', {error = given.lost})
  else
    queue_again(id, now(), {last_error = given.lost})
  end
end

-- Send the Celery message. Consumers pop from the other end of the list.
local function wake(id)
  local tag = id .. ':' .. redis.call('INCR', 'ferry:messages')
  local message = string.gsub(given.message, '@(%a+)@', {job = id, tag = tag})
  redis.call('LPUSH', given.queue, message)
  redis.call('ZREM', WAITING, id)
  redis.call('ZADD', WOKEN, now(), id)
end

local function held(id, fence)
  return get(id, 'state') == 'running' and number(id, 'attempts') == fence
end
