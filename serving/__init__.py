"""Everything that talks to TorchServe: start, readiness, tokens, and the clients of its APIs."""
