-- The parts of a job, empty where none were opened.

return parts_of(given.id)
