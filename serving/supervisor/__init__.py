"""The running service: start, watch, restart and stop its processes, and export its metrics."""


class Ended(Exception):
    """A part of the service exited during its start; the message gives its name and exit code."""
