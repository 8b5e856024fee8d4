-- A job's record, empty where there is none.

return record(given.id)
