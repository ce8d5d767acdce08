"""Changes to the deployed versions, and the checks that make them safe."""
