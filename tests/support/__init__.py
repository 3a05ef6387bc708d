"""The common ground of the tests."""
