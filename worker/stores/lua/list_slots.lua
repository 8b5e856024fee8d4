-- The descriptions of the slots that are alive.

return described()
