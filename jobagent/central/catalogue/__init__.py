"""The signed catalogue on disk: roles, keys, ceremonies."""
