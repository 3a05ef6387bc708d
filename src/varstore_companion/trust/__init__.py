"""Pure: which certificates must be where, what is missing, how to add it, and the verdict on a write."""
