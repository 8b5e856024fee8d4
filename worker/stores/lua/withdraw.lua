-- A slot goes away.

redis.call('ZREM', SLOTS, given.worker_id)
redis.call('HDEL', SLOT, given.worker_id)
