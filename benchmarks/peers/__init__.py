"""The same version on other servers: a few lines each, as their documentation would have it."""
