-- Write the outcome of an attempt: 1, or 0 where the claim is stale. The same claim may ask again.

local id = given.id
if not held(id, given.fence) then
  return number(id, 'settled_fence') == given.fence and 1 or 0
end

local cancel_requested = get(id, 'cancel_requested')

local function broken()
  if not given.retryable then
    return finish(id, 'failed', {error = given.error})
  end
  if cancel_requested then
    return finish(id, 'cancelled', {})
  end
  local failures = redis.call('HINCRBY', key('job', id), 'failures', 1)
  if failures >= number(id, 'max_failures') then
    return finish(id, 'failed', {error = given.error})
  end
  tell(id, 'broken', {error = cjson.decode(given.error)})
  local ready_at = now() + number(id, 'retry_delay_ms') * 2 ^ (failures - 1)
  queue_again(id, ready_at, {not_before = ready_at, last_error = given.error})
end

-- Queue again what nobody failed at.
local function back(event, ready_at, fields)
  if cancel_requested then
    return finish(id, 'cancelled', {})
  end
  tell(id, event, {})
  queue_again(id, ready_at, fields)
end

local outcomes = {
  done = function() finish(id, 'succeeded', {result = given.result}) end,
  stopped = function() finish(id, 'cancelled', {}) end,
  broken = broken,
  lost = function() lose(id, given.error) end,
  returned = function() back('returned', now(), {}) end,
  postponed = function()
    local ready_at = now() + given.delay_ms
    back('waits', ready_at, {not_before = ready_at, waits = given.waits})
  end,
}
outcomes[given.outcome]()
set(id, {settled_fence = given.fence})
return 1
