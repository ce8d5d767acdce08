"""Shared by tests and benchmarks: a started service, clients, hostile inputs and faults."""
