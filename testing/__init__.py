"""What tests and benchmarks share: a started service, clients, hostile inputs and faults."""
