-- Attempts up to `fence` left nothing, or nothing any more.

if tonumber(redis.call('HGET', UNCLEAN, given.id) or 0) <= given.fence then
  redis.call('HDEL', UNCLEAN, given.id)
end
