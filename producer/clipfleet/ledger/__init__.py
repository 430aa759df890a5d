"""The truth about jobs and chunks, in Redis: keys, Lua scripts, their answers. No rows, no items."""
