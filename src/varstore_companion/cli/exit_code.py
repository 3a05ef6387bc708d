"""The exit codes of every command."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a script can rely on."""

    FINE = 0
    NO = 1
    """The answer is no: an update is needed, or what was asked for was refused."""
    UNUSABLE = 2
    """Wrong usage, or input that cannot be read."""
    INTERRUPTED = 130
    """Ctrl-C; the shells' number for a process that SIGINT ended."""
    UNREAD = 141
    """Whoever read the output went away, so what the command found was not told; the shells' number for SIGPIPE."""
