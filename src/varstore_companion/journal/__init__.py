"""What the daemon keeps on disk, written so that a crash leaves the old or the new."""
