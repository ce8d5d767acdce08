"""Measurements of the running service, each by one command."""
