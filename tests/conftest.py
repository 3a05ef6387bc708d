"""What holds for every test."""

import os
import signal
import tempfile

import pytest
from hypothesis import settings

from varstore_companion.daemon.process import raise_descriptor_limit

# A machine under load is not a fault of the code: what takes too long is found by counting, not by the clock.
settings.register_profile("varstore-companion", deadline=None)
# For a night: HYPOTHESIS_PROFILE=nightly.
settings.register_profile("nightly", deadline=None, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "varstore-companion"))

LONG = ("test_conformance.py", "test_killing.py", "test_run.py", "test_backend.py", "test_killed.py", "test_restart.py")
"""Files of few and long tests."""


# A shell has what it starts in the background ignore it, and so would the commands that are interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)
# As the daemon itself does: a shell gives 1,024 or fewer, though there may be more.
raise_descriptor_limit()
# A socket's path has room for 107 bytes, of which pytest's own folders take most.
if len(os.fsencode(tempfile.gettempdir())) > len("/var/tmp"):
    os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: a file goes to one process, and begun last it would have the others wait for it."""
    items.sort(key=lambda item: item.path.name not in LONG)
