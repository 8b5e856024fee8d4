-- Queue a failed or cancelled job again, by a user's wish. Its attempts stay in its history, and their numbers fence.

local id = given.id
local state = get(id, 'state')
if state ~= 'failed' and state ~= 'cancelled' then
  return {state == 'succeeded' and 'state' or 'known', record(id)}
end
if number(id, 'schema_version') > given.schema_version then
  return {'known', record(id)} -- whose reader refuses it
end

local target = get(id, 'target') or nil
local holder = holder_of(target)
if holder then
  return {'reserved', {target, holder}}
end
local trouble, dependency = block(id, cjson.decode(get(id, 'depends_on') or '[]'))
if trouble then
  return {trouble, dependency}
end
reserve(target, id)
move(id, 'queued', {failures = 0, losses = 0})
tell(id, 'retried', {})
if not blocked(id) then
  wake(id)
end
return {'known', record(id)}
