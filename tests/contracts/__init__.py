"""One suite for each interface, run against every adapter of it."""
