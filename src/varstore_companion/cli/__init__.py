"""What a person runs: one command a file."""
