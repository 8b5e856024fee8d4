-- Queued: cancelled at once. Running: its worker is told by its next heartbeat; if that one is lost, the reaper ends
-- the job, which also clears away what the worker left.

local state = get(given.id, 'state')
if state == 'queued' then
  finish(given.id, 'cancelled', {})
elseif state == 'running' then
  set(given.id, {cancel_requested = 1, updated_at = now()})
end
return record(given.id)
