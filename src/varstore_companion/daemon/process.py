"""What the daemon's process asks of the system: its folders, the lock on its state, descriptors."""

import fcntl
import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from varstore_companion.errors import ConfigurationError

DESCRIPTORS = 16_384
"""What the daemon asks the system for: a socket for each of 1,000 VMs, all connections, and room."""


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Hold the state folder, which is made when it is missing. The lock goes with the process, however it ends."""
    make_folder(state_dir, mode=0o700)
    try:
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{state_dir}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"{state_dir}: another daemon runs on this state folder") from None
        except OSError as error:
            raise ConfigurationError(f"{state_dir}: cannot be locked: {error.strerror}") from None
        yield
    finally:
        os.close(lock)


def make_folder(path: Path, mode: int) -> None:
    """Make a folder and what it lies in, unless it is there. Raises `ConfigurationError`."""
    try:
        path.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None


def raise_descriptor_limit() -> None:
    """Have as many descriptors as `DESCRIPTORS`, or as the system gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def spare_what_stands() -> None:
    """Keep what the start has made out of the garbage collector: looking through all of it holds every VM up for 20 ms."""
    gc.collect()
    gc.freeze()
