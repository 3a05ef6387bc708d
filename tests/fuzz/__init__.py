"""Fuzzing of everything that reads bytes from outside; `run.py` is what `make fuzz` runs."""
