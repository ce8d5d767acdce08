"""Changes to the versions that serve, and the checks that make them safe."""
