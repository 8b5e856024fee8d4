-- {attempt, record, attempt, record, ...} of jobs whose lost attempts up to that one may have left something.

local found = {}
for _, id in ipairs(redis.call('HRANDFIELD', UNCLEAN, given.limit)) do
  found[#found + 1] = redis.call('HGET', UNCLEAN, id)
  found[#found + 1] = record(id)
end
return found
