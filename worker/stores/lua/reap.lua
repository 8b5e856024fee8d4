-- The safety net: lost leases, jobs whose time has come, and jobs whose message was lost. Answers the ids it touched.

local touched = {}

local function each(index, up_to, action)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', up_to, 'LIMIT', 0, given.limit)) do
    action(id)
    touched[#touched + 1] = id
  end
end

-- Messages leave in the order in which they came: a job woken before the oldest one that waits has lost its own.
-- A message that was popped this moment is not lost: it gets `patience_ms` until its claim.
local function lost_before()
  local bound = now() - given.patience_ms
  local oldest = redis.call('LINDEX', given.queue, -1)
  if not oldest then
    return bound
  end
  local sent = redis.call('ZSCORE', WOKEN, cjson.decode(oldest).headers.id)
  return sent and math.min(bound, sent - given.patience_ms) or 0
end

each(LEASES, now(), lose)
each(WAITING, now(), wake)
each(WOKEN, lost_before(), wake)
return touched
