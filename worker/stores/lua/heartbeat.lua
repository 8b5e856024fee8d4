-- Renew a lease and record progress. A lease that ran out unnoticed may still be renewed: nobody took the job.

local id = given.id
if not held(id, given.fence) then
  return 'fenced'
end
local expires = now() + given.lease_ms
set(id, {lease_expires_at = expires, progress = given.progress, updated_at = now()})
redis.call('ZADD', LEASES, expires, id)
return get(id, 'cancel_requested') and 'cancel' or 'go_on'
