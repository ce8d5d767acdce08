"""The edge: nginx between a network and the service."""
