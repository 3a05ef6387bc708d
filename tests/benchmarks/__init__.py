"""What the program costs, each figure as a ratio to a yardstick measured in the same run: `make bench`."""
