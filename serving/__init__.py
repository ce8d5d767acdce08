"""Run TorchServe and manage the versions of the model that it serves."""
