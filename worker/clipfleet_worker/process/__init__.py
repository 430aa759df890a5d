"""What keeps one process healthy: cores, memory, watchdog, drain. Knows no chunk."""
