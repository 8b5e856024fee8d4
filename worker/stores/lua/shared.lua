-- What every transition shares: its arguments, the keys, the server's clock, records and events.
-- All keys live on one server; kombu's broker does not work on Redis Cluster either.

local given = cjson.decode(ARGV[1])

local ALL = 'ferry:jobs'          -- every job, by its sequence number: the newest has the largest
local LEASES = 'ferry:leases'     -- running jobs, by the end of their lease
local WAITING = 'ferry:waiting'   -- queued jobs without a message, by the time from which they may start
local OUTBOX = 'ferry:outbox'     -- queued jobs whose message another broker must carry, by the time they became ready
local ENDED = 'ferry:ended'       -- terminal jobs, by the time of their end
local INVITED = 'ferry:invited'   -- running jobs whose call for help another broker must carry, by its time
local UNCLEAN = 'ferry:unclean'   -- jobs whose attempts may have left partial folders: the last such attempt
local CLASSES = 'ferry:classes'   -- resource classes that any job ever asked for
local SLOTS = 'ferry:slots'       -- slots, by the time until which they count as alive; their descriptions:
local SLOT = 'ferry:slot'

local PRIORITIES = {'high', 'normal', 'low'}
local STEPS = {high = 0, normal = 3, low = 6}  -- kombu's Redis transport serves the lowest number first

-- What is true in one state only; a job that leaves the state loses these fields.
local STATE_FIELDS = {
  'not_before', 'last_error', 'waits', 'hold_host',                                          -- queued
  'worker_id', 'host', 'devices', 'started_at', 'lease_expires_at', 'progress',              -- running
  'cancel_requested', 'publishing', 'disk',
  'result', 'error',                                                                         -- succeeded, failed
}

local function key(kind, name)
  return 'ferry:' .. kind .. ':' .. name
end

-- One moment a script, and so one call.
local moment
local function now()
  if not moment then
    local time = redis.call('TIME')
    moment = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return moment
end

local function get(id, field)
  return redis.call('HGET', key('job', id), field)
end

local function number(id, field)
  return tonumber(get(id, field) or 0)
end

local function set(id, fields)
  local words = {}
  for field, value in pairs(fields) do
    words[#words + 1] = field
    words[#words + 1] = value
  end
  if #words > 0 then
    redis.call('HSET', key('job', id), unpack(words))
  end
end

-- What never changes is read once a script. Version 1 knew neither classes nor priorities.
local classes, priorities = {}, {}

local function class_of(id)
  classes[id] = classes[id] or get(id, 'class') or 'cpu'
  return classes[id]
end

local function priority_of(id)
  priorities[id] = priorities[id] or get(id, 'priority') or 'normal'
  return priorities[id]
end

local function held(id, fence)
  return get(id, 'state') == 'running' and number(id, 'attempts') == fence
end

-- A list as JSON: cjson takes an empty one for an object.
local function array(items)
  return #items == 0 and '[]' or cjson.encode(items)
end

-- Queued jobs with a message, by the time it was sent: one index for each of the broker's lists.
local function woken(class, priority)
  return 'ferry:woken:' .. class .. ':' .. priority
end

local function queue_of(class)
  return 'ferry.' .. string.gsub(class, ':', '.')
end

-- The broker's list, as kombu names it.
local function broker_list(class, priority)
  local queue = queue_of(class)
  return STEPS[priority] == 0 and queue or queue .. '\6\22' .. STEPS[priority]
end

-- Add to the job's history. `fields` are JSON-safe values.
local function tell(id, event, fields)
  fields.number = redis.call('HINCRBY', key('job', id), 'events', 1)
  fields.at, fields.event, fields.attempt = now(), event, number(id, 'attempts')
  redis.call('RPUSH', key('events', id), cjson.encode(fields))
  if fields.number > given.kept_events then
    redis.call('LTRIM', key('events', id), -given.kept_events, -1)
  end
end
