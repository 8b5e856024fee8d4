-- The last renewal before the output appears: from here on the job cannot be cancelled.

local id = given.id
if not held(id, given.fence) then
  return 'fenced'
elseif get(id, 'cancel_requested') then
  return 'cancel'
end
local expires = now() + given.lease_ms
if not get(id, 'publishing') then
  tell(id, 'publishing', {})
end
set(id, {lease_expires_at = expires, publishing = 1, updated_at = now()})
redis.call('ZADD', LEASES, expires, id)
return 'go_on'
