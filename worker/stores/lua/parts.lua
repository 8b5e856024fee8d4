-- Parts of a job: a hash with their fingerprint, count and what each done one left, and an index of those to do, by the
-- end of the lease of whoever writes them (0: nobody).

local function parts_of(id)
  return redis.call('HGETALL', key('parts', id))
end

local function part_held()
  local holder = redis.call('HGET', key('parts', given.id), 'holder:' .. given.number)
  return held(given.id, given.job_fence) and tonumber(holder or 0) == given.part_fence
end
