"""What the machine has to give for a test."""

import resource

import pytest


def needs_descriptors(count: int) -> pytest.MarkDecorator:
    """Skips a test where no process may have so many."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    few = hard not in (resource.RLIM_INFINITY, max(hard, count))
    return pytest.mark.skipif(few, reason=f"no process may have {count:,} descriptors here")
