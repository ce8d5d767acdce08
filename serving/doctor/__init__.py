"""Checks for everything that can be wrong with the service."""
