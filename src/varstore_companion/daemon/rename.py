"""rename(2) with what the standard library leaves out: exchanging two names, and never replacing one (renameat2, Linux 3.15).

By its number, since the C library of today's hosts (glibc 2.17) has no function for it.
"""

import errno
import os
import sys
from enum import IntEnum

_NUMBERS = {"x86_64": 316, "aarch64": 276}
"""The system call's number by the machine's name, for programs of 64 bits."""


class Flag(IntEnum):
    """renameat2's flags (linux/fs.h)."""

    NOREPLACE = 1
    EXCHANGE = 2


def rename(folder: int, old: str, new: str, flag: Flag) -> None:
    """Rename inside the folder that `folder` is a descriptor of: in one step, for everybody who looks. Raises `OSError`.

    `EXCHANGE`: both names are there, and each leads to what the other one led to. `NOREPLACE`: `new` is not there.
    """
    # Only a daemon that interposes needs it.
    import ctypes  # noqa: PLC0415

    number = _NUMBERS.get(os.uname().machine) if sys.maxsize > 2**32 else None
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    system = ctypes.CDLL(None, use_errno=True)
    if system.syscall(ctypes.c_long(number), folder, os.fsencode(old), folder, os.fsencode(new), ctypes.c_uint(flag)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), old, None, new)
