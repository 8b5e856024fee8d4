-- Slots and GPUs: who is alive, which devices are free, and for whom they are kept.

local HOLD_MS = 60000 -- a kept host is asked for again much sooner, unless its job is gone

local function described()
  local found = {}
  for _, worker_id in ipairs(redis.call('ZRANGEBYSCORE', SLOTS, '(' .. now(), '+inf')) do
    found[#found + 1] = redis.call('HGET', SLOT, worker_id)
  end
  return found
end

-- Read once a script, however many records it answers.
local read_slots
local function alive()
  if not read_slots then
    read_slots = {}
    for _, slot in ipairs(described()) do
      read_slots[#read_slots + 1] = cjson.decode(slot)
    end
  end
  return read_slots
end

-- How many jobs of a class the slots that are alive can run at once.
local function capacity(class)
  local cpus, gpus = 0, {}
  for _, slot in ipairs(alive()) do
    if type(slot.gpu) == 'string' then
      gpus[slot.host] = (gpus[slot.host] or 0) + 1
    else
      cpus = cpus + 1
    end
  end
  if class == 'cpu' then
    return cpus
  end
  local each, total = tonumber(string.match(class, '%d+') or 1), 0
  for _, count in pairs(gpus) do
    total = total + math.floor(count / each)
  end
  return total
end

local function devices_key(host)
  return key('devices', host)
end

-- The host's GPUs that no job has leased, the slot's own first; and how many there are in all.
local function free_devices(slot)
  local all = {[slot.gpu] = true}
  for _, other in ipairs(alive()) do
    if other.host == slot.host and type(other.gpu) == 'string' then
      all[other.gpu] = true
    end
  end
  local free, total = {}, 0
  for device in pairs(all) do
    total = total + 1
    if redis.call('HEXISTS', devices_key(slot.host), device) == 0 then
      free[#free + 1] = device
    end
  end
  table.sort(free, function(one, other)
    if one == slot.gpu or other == slot.gpu then
      return one == slot.gpu and other ~= slot.gpu
    end
    return one < other
  end)
  return free, total
end

local function release_devices(id)
  local devices = get(id, 'devices')
  if devices then
    local host = get(id, 'host')
    for _, device in ipairs(cjson.decode(devices)) do
      if redis.call('HGET', devices_key(host), device) == id then
        redis.call('HDEL', devices_key(host), device)
      end
    end
  end
end

local function release_hold(id)
  local host = get(id, 'hold_host')
  if host and redis.call('GET', key('hold', host)) == id then
    redis.call('DEL', key('hold', host))
  end
end
