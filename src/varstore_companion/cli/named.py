"""Errors about an input, with its name in front."""

from collections.abc import Iterator
from contextlib import contextmanager

from varstore_companion.errors import CompanionError, MalformedError


class InputError(CompanionError):
    """What is wrong with an input that a person named."""


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put `name` before the errors of reading it."""
    try:
        yield
    except MalformedError as error:
        raise InputError(f"{'standard input' if name == '-' else name}: {error}") from None
