-- Queued: cancelled at once. Running: its worker is told by its next heartbeat; if that one is lost, the reaper ends
-- the job, which also clears away what the worker left. Publishing: too late.

local id = given.id
local state = get(id, 'state')
if state == 'queued' then
  finish(id, 'cancelled', {})
elseif state == 'running' and not get(id, 'publishing') and not get(id, 'cancel_requested') then
  set(id, {cancel_requested = 1, updated_at = now()})
  tell(id, 'cancel_requested', {})
end
return record(id)
