-- A page of jobs that stand in all given indexes, newest first: {next cursor or '', record, record, ...}.
-- Walks the smallest index and looks each id up in the others, `look_at` ids at most: a filter that matches
-- little gives short pages, but never holds up the server.

table.sort(given.indexes, function(one, other)
  return redis.call('ZCARD', one) < redis.call('ZCARD', other)
end)

local function in_all_others(id)
  for other = 2, #given.indexes do
    if not redis.call('ZSCORE', given.indexes[other], id) then
      return false
    end
  end
  return true
end

local below = given.before and '(' .. given.before or '+inf'
local walked = redis.call('ZREVRANGEBYSCORE', given.indexes[1], below, '-inf', 'WITHSCORES', 'LIMIT', 0, given.look_at)
local page = {''}
for position = 1, #walked, 2 do
  local id, sequence = walked[position], walked[position + 1]
  if in_all_others(id) then
    local found = record(id)
    page[#page + 1] = #found > 0 and found or nil
  end
  local full = #page > given.limit
  local more = position + 1 < #walked or #walked == 2 * given.look_at
  if more and (full or position + 1 == #walked) then
    page[1] = sequence
  end
  if full then
    break
  end
end
return page
