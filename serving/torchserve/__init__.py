"""The TorchServe process, its worker program and its tokens."""
