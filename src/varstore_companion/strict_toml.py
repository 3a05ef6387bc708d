"""Pure: an operator's TOML read strictly: every key by name and kind, no key left over, errors that name file, key and line."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import TypeVar
from uuid import UUID

from varstore_companion.errors import ConfigurationError

T = TypeVar("T")


def load(text: str, source: str) -> "Table":
    """Parse a document; `source` names it in errors. Raises `ConfigurationError`."""
    try:
        return Table(source, "", tomllib.loads(text), text)
    except (ValueError, RecursionError) as error:
        # Beside its own error, tomllib lets out what int() says of too many digits, and nesting that is too deep.
        raise ConfigurationError(f"{source}: not TOML: {error}") from None


class Table:
    """One table. Each reader takes its key away; `finish` refuses what is left. All raise `ConfigurationError`.

    `text`: the whole document, for the lines of the keys of its first table.
    """

    def __init__(self, source: str, path: str, values: Mapping[str, object], text: str = "") -> None:
        self._source = source
        self._path = path
        self._values = values
        self._left = dict(values)
        self._asked: dict[str, None] = {}
        self._text = text

    def __contains__(self, key: str) -> bool:
        self._asked[key] = None
        return key in self._left

    def error(self, key: str, expected: str, found: object = None) -> ConfigurationError:
        """The error for a key that is not as expected."""
        shown = "" if found is None else f", found {str(found)[:80]!r}"
        return ConfigurationError(f"{self._source}: {self._where(key)}: expected {expected}{shown}{self._line(key)}")

    def refusal(self, key: str, why: str) -> ConfigurationError:
        """The error for a key that is well-formed and cannot be used all the same; `why` may have lines of its own."""
        number = line_of(self._text, key) if key in self._values else None
        line = "" if number is None else f", line {number}"
        return ConfigurationError(f"{self._source}{line}: {self._where(key)}: {why}")

    def finish(self) -> None:
        """Refuse the keys that nobody asked for."""
        for key in self._left:
            allowed = ", ".join(self._asked)
            raise ConfigurationError(
                f"{self._source}: {self._where(key)}: unknown key: expected one of {allowed}{self._line(key)}"
            )

    def text(self, key: str) -> str:
        """A string that is not empty."""
        value = self._take(key, str, "a string")
        if not value:
            raise self.error(key, "a string that is not empty")
        return value

    def absolute_path(self, key: str) -> str:
        """An absolute path: who reads the file need not know in which folder its reader runs."""
        value = self.text(key)
        if not value.startswith("/") or "\0" in value:
            raise self.error(key, "an absolute path", value)
        return value

    def integer(self, key: str, most: int | None = None, *, least: int = 0) -> int:
        """A whole number from `least`, to `most` if that is given."""
        value = self._take(key, int, "a whole number")
        if isinstance(value, bool) or value < least or (most is not None and value > most):
            raise self.error(key, f"a whole number from {least}" + ("" if most is None else f" to {most:,}"), value)
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        values = self._take(key, list, "a list of strings")
        for value in values:
            if not isinstance(value, str):
                raise self.error(key, "a list of strings", value)
        return values

    def guid(self, key: str) -> UUID:
        """A GUID in its usual text form."""
        return self._guid(key, self.text(key))

    def guids(self, key: str) -> list[UUID]:
        """A list of GUIDs."""
        return [self._guid(key, value) for value in self.texts(key)]

    def sha256(self, key: str) -> bytes:
        """A SHA-256 as 64 hexadecimal digits."""
        value = self.text(key)
        if len(value) != 64 or set(value) - set("0123456789abcdef"):
            raise self.error(key, "a SHA-256 as 64 lower-case hexadecimal digits", value)
        return bytes.fromhex(value)

    def choice(self, key: str, allowed: Mapping[str, T]) -> T:
        """One of the names in `allowed`, as its value."""
        return self._choose(key, self.text(key), allowed)

    def choices(self, key: str, allowed: Mapping[str, T]) -> list[T]:
        """A list of names in `allowed`, as their values."""
        return [self._choose(key, value, allowed) for value in self.texts(key)]

    def tables(self, key: str) -> Iterator[tuple[str, "Table"]]:
        """A table of tables: each name with its table."""
        for name, value in self._take(key, dict, "a table").items():
            if not isinstance(value, dict):
                raise self.error(f"{key}.{name}", "a table", value)
            yield name, Table(self._source, self._where(f"{key}.{name}"), value)

    def array(self, key: str) -> Iterator["Table"]:
        """An array of tables; absent counts as empty."""
        if key not in self:
            return
        for number, value in enumerate(self._take(key, list, "an array of tables"), 1):
            if not isinstance(value, dict):
                raise self.error(f"{key}[{number}]", "a table", value)
            yield Table(self._source, self._where(f"{key}[{number}]"), value)

    def _where(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _line(self, key: str) -> str:
        number = line_of(self._text, key) if key in self._values else None
        return "" if number is None else f" (at line {number})"

    def _take(self, key: str, kind: type[T], expected: str) -> T:
        if key not in self:
            raise self.error(key, f"{expected}, found nothing")
        value = self._left.pop(key)
        if not isinstance(value, kind):
            raise self.error(key, expected, value)
        return value

    def _guid(self, key: str, value: str) -> UUID:
        try:
            guid = UUID(value)
        except ValueError:
            raise self.error(key, "a GUID", value) from None
        if str(guid) != value.lower():
            raise self.error(key, f"a GUID in its usual form, {guid}", value)
        return guid

    def _choose(self, key: str, value: str, allowed: Mapping[str, T]) -> T:
        if value not in allowed:
            raise self.error(key, f"one of {', '.join(allowed)}", value)
        return allowed[value]


def line_of(text: str, key: str) -> int | None:
    """The line, from 1, on which a key of a document's first table is given; None when that cannot be told.

    The first line that looks like it counts if what is before it is a document by itself: the inside of a text of several
    lines does not. Nor does a key of another table, which only a heading can begin.
    """
    name = re.escape(key)
    begins = re.compile(rf"[ \t]*(\[\[?[ \t]*)?(?:{name}|\"{name}\"|'{name}')[ \t]*[=.\]]")
    lines = text.split("\n")
    for number, line in enumerate(lines):
        match = begins.match(line)
        if match is None:
            continue
        before = "\n".join([*lines[:number], ""])
        if match[1] is None and any(other.lstrip().startswith("[") for other in lines[:number]):
            return None
        return number + 1 if _is_document(before) else None
    return None


def _is_document(text: str) -> bool:
    try:
        tomllib.loads(text)
    except ValueError:
        return False
    return True
