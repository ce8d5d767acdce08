"""The TorchServe process, its configuration, its worker program and its tokens."""


class StartError(Exception):
    """The service can't start; the message is one sentence that gives the cause and the fix."""
