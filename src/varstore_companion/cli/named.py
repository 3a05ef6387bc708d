"""Errors about an input, with its name in front."""

from collections.abc import Iterator
from contextlib import contextmanager

from varstore_companion.errors import CompanionError, MalformedError, OverLimitError


class InputError(CompanionError):
    """What is wrong with an input that a person named."""


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put `name`, or what `-` stands for, before the errors of reading it: as `InputError`."""
    try:
        yield
    except (MalformedError, OverLimitError) as error:
        raise InputError(f"{shown(name)}: {error}") from None
    except OSError as error:
        raise InputError(f"{shown(name)}: {error.strerror}") from None


def shown(name: str) -> str:
    """The name of an input for people."""
    return "standard input" if name == "-" else name or "''"
