"""The same version on other servers: a few lines each, as in their documentation."""
