"""The daemon killed at random moments under load: nothing acknowledged is lost or turned back (invariants 6, 7 and 9)."""
