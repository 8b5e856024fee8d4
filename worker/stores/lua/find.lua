-- The record of the job that was accepted under an idempotency key, or nothing.

local known = redis.call('GET', key('idempotency', given.idempotency_key))
return known and record(known)
