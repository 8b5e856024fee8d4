-- Take a job: the number of the claim is its fence. Answers the record, or nothing where there is nothing to do.

local id = given.id
if get(id, 'state') == 'running' then
  local lost = number(id, 'lease_expires_at') <= now()
  local own = get(id, 'worker_id') == given.worker_id
  if lost or own then
    lose(id)
  end
end
if get(id, 'state') ~= 'queued' or number(id, 'not_before') > now() then
  return false
end

local expires = now() + given.lease_ms
redis.call('HINCRBY', key('job', id), 'attempts', 1)
move(id, 'running', {worker_id = given.worker_id, lease_expires_at = expires, progress = given.progress})
redis.call('ZADD', LEASES, expires, id)
return record(id)
