-- Bytes of a file system that running jobs have still to write.

return string.format('%.0f', kept_bytes(given.filesystem))
