"""Promises under faults: real processes, kill -9, servers that restart. `make chaos` runs them at full size."""
