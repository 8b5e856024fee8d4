-- A job's record as scripts answer it: its fields, and what follows from its surroundings.

-- Jobs of the same class that come before it.
local function position(id)
  local ahead, class = 0, class_of(id)
  for _, priority in ipairs(PRIORITIES) do
    if priority == priority_of(id) then
      local rank = redis.call('ZRANK', woken(class, priority), id) or redis.call('ZCARD', woken(class, priority))
      return ahead + rank + 1
    end
    ahead = ahead + redis.call('ZCARD', woken(class, priority))
  end
end

-- Room of a file system that running jobs, but for one, have reserved and not used yet.
local function kept_bytes(filesystem, but)
  local kept = 0
  local reservations = redis.call('HGETALL', key('disk', filesystem))
  for place = 1, #reservations, 2 do
    local id, bytes = reservations[place], tonumber(reservations[place + 1])
    if id ~= but then
      local progress = cjson.decode(get(id, 'progress') or '{}')
      kept = kept + math.max(0, bytes - (progress.done_bytes or 0))
    end
  end
  return kept
end

local function waits_for_slot(id)
  local class = class_of(id)
  return cjson.encode({reason = 'slot', resource_class = class, position = position(id), slots = capacity(class)})
end

local function why_waiting(id)
  if blocked(id) then
    local jobs = redis.call('SMEMBERS', key('blockers', id))
    table.sort(jobs)
    return cjson.encode({reason = 'dependency', jobs = jobs})
  end
  local waits = get(id, 'waits')
  if waits then
    return waits
  end
  local not_before = number(id, 'not_before')
  if not_before > now() then
    return cjson.encode({reason = 'retry', ['until'] = not_before / 1000})
  end
  return waits_for_slot(id)
end

local function record(id)
  local fields = redis.call('HGETALL', key('job', id))
  if #fields > 0 and get(id, 'state') == 'queued' then
    fields[#fields + 1] = 'waiting'
    fields[#fields + 1] = why_waiting(id)
  end
  return fields
end
