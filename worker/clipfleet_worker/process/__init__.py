"""What keeps one process healthy: cores, memory, watchdog, drain. Nothing here knows a chunk."""
