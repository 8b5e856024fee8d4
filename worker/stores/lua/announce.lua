-- A slot is alive for a while.

redis.call('ZADD', SLOTS, now() + given.alive_ms, given.slot.worker_id)
redis.call('HSET', SLOT, given.slot.worker_id, given.described)
