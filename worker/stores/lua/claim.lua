-- Take a job: the number of the claim is its fence. Answers the record, or nothing where there is nothing to do.

local id, slot = given.id, given.slot

if number(id, 'schema_version') > given.schema_version then
  return false -- its worker is a newer one
end
if get(id, 'state') == 'running' then
  local expired = number(id, 'lease_expires_at') <= now()
  local own = get(id, 'worker_id') == slot.worker_id
  if expired or own then
    lose(id, given.lost)
  end
end
if get(id, 'state') ~= 'queued' or number(id, 'not_before') > now() or blocked(id) then
  return false
end

-- Too few GPUs are free: look again soon. The host is kept for the first job that is too large for what is free.
local function wait_for_devices(needed, free, total, hold)
  if not hold and total >= needed then
    redis.call('SET', key('hold', slot.host), id, 'PX', HOLD_MS)
    set(id, {hold_host = slot.host})
  elseif hold == id then
    redis.call('PEXPIRE', key('hold', slot.host), HOLD_MS)
  end
  set(id, {waits = cjson.encode({reason = 'devices', needed = needed, free = free, host = slot.host})})
  redis.call('ZREM', woken(class_of(id), priority_of(id)), id)
  redis.call('ZADD', WAITING, now() + given.look_again_ms, id)
end

-- All or none; nil where they cannot be had now.
local function lease_devices()
  local needed = number(id, 'gpus')
  if needed == 0 then
    return {}
  end
  local hold = redis.call('GET', key('hold', slot.host))
  local free, total = free_devices(slot)
  if (hold and hold ~= id) or #free < needed or free[1] ~= slot.gpu then
    return wait_for_devices(needed, #free, total, hold)
  end
  local leased = {unpack(free, 1, needed)}
  for _, device in ipairs(leased) do
    redis.call('HSET', devices_key(slot.host), device, id)
  end
  return leased
end

if number(id, 'gpus') > 0 and type(slot.gpu) ~= 'string' then
  return false -- a message in the wrong queue
end
local devices = lease_devices()
if not devices then
  return false
end

local expires = now() + given.lease_ms
redis.call('HINCRBY', key('job', id), 'attempts', 1)
move(id, 'running', {
  worker_id = slot.worker_id,
  host = slot.host,
  devices = array(devices),
  started_at = now(),
  lease_expires_at = expires,
  progress = given.progress,
})
redis.call('ZADD', LEASES, expires, id)
tell(id, 'claimed', {worker_id = slot.worker_id, host = slot.host, devices = #devices > 0 and devices or nil})
return record(id)
