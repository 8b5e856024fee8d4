-- {attempt, record, attempt, record, ...} of jobs whose attempts up to that one may have left something that no later
-- attempt goes on with: they ended, and nobody asked for a retry for a while.

local function is_over(id)
  local state = get(id, 'state')
  if state == 'failed' or state == 'cancelled' then
    return number(id, 'updated_at') <= now() - math.min(given.keep_ms, given.retention_ms)
  end
  return state ~= 'queued' and state ~= 'running'
end

local found = {}
for _, id in ipairs(redis.call('HRANDFIELD', UNCLEAN, given.limit)) do
  if is_over(id) then
    found[#found + 1] = redis.call('HGET', UNCLEAN, id)
    found[#found + 1] = record(id)
  end
end
return found
