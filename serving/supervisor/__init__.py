"""The running service: start, watch, restart and stop its processes, and export its metrics."""
