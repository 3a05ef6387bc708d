"""What the daemon is told: a TOML file, and options that go before it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from varstore_companion import strict_toml
from varstore_companion.daemon.limits import Limits
from varstore_companion.efi.outline import DATA_LIMIT
from varstore_companion.errors import ConfigurationError, MalformedError
from varstore_companion.files import read_file
from varstore_companion.paths import CONFIG, CONTROL, STATE_DIR, VARSTORED_AUTH, XAPI
from varstore_companion.strict_toml import Table
from varstore_companion.toolstack.interface import LATE_SECONDS
from varstore_companion.wire.limits import MAX_PATH

FILE_LIMIT = 65_536
TOOLSTACKS = ("embedded", "guard", "xapi")
LONGEST_LATE_SECONDS = 3_600
_LIMITS = Limits()
LIMITS = tuple(each.name for each in fields(Limits))
LARGEST_LIMIT = 100_000
RELOADABLE = frozenset({"certificates", "auth_dir", "manifest", "headroom", *LIMITS})
"""The keys that a reload puts in force. The others say where things are that are open while the daemon runs."""

Blame = Callable[[str, str], ConfigurationError]
"""The error for a key and the reason why its value cannot be used."""


def by_key(key: str, why: str) -> ConfigurationError:
    """The error where nobody knows in which file or option the key was given."""
    return ConfigurationError(f"{key}: {why}")


@dataclass(frozen=True, slots=True)
class Settings:
    """The daemon's settings; each name is its key in the file.

    `certificates`: a folder with more certificate bodies; `auth_dir`: where varstored's `.auth` files are; `manifest`: a file
    instead of the shipped one; `headroom`: bytes that an update must leave for the next append to dbx instead of the
    manifest's; `late_seconds`: for how long a guard or xapi may still carry out a call that was given up; `xapi`: xapi's own
    socket, for the toolstack of that name; `xapi_socket`: where the embedded toolstack answers xapi's clients, nowhere unless
    it is given. The others are those of `Limits`.
    """

    control: Path = CONTROL
    state_dir: Path = STATE_DIR
    toolstack: str = "embedded"
    xapi: Path = XAPI
    certificates: Path | None = None
    auth_dir: Path = VARSTORED_AUTH
    manifest: Path | None = None
    headroom: int | None = None
    late_seconds: int = int(LATE_SECONDS)
    xapi_socket: Path | None = None
    write_burst: int = _LIMITS.write_burst
    writes_per_second: int = _LIMITS.writes_per_second
    boots_at_once: int = _LIMITS.boots_at_once
    calls_at_once: int = _LIMITS.calls_at_once
    updates_at_once: int = _LIMITS.updates_at_once
    failures_to_pause: int = _LIMITS.failures_to_pause

    @property
    def limits(self) -> Limits:
        """The keys that are limits."""
        return Limits(**{name: getattr(self, name) for name in LIMITS})


@dataclass(frozen=True, slots=True)
class Source:
    """Where the settings come from, to be read again. `given`: options, by their key; they go before the file.

    `path`: the file, None without one; `may_be_absent`: it is the usual one, which nobody asked for.
    """

    path: Path | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    may_be_absent: bool = False

    @classmethod
    def of(cls, path: Path | None, given: Mapping[str, Any]) -> "Source":
        """The file that was named, else the usual one. What is there now has to be there when it is read again."""
        return cls(CONFIG, given, _is_absent(CONFIG)) if path is None else cls(path, given)

    @classmethod
    def fixed(cls, settings: Settings) -> "Source":
        """These settings, whenever they are read."""
        return cls(given={each.name: getattr(settings, each.name) for each in fields(settings)})

    def read(self) -> Settings:
        """The settings as they are now. Raises `ConfigurationError`."""
        absent = self.path is None or (self.may_be_absent and _is_absent(self.path))
        settings = Settings() if absent or self.path is None else load(self.path)
        return confirmed(replace(settings, **self.given), self.error)

    def error(self, key: str, why: str) -> ConfigurationError:
        """The error for a key whose value cannot be used: says by which option or on which line it was given, if it was."""
        if key in self.given:
            return ConfigurationError(f"--{key.replace('_', '-')}: {why}")
        if self.path is not None and not (self.may_be_absent and _is_absent(self.path)):
            try:
                table = _table(self.path)
            except ConfigurationError:  # gone since it was read
                return ConfigurationError(f"{self.path}: {key}: {why}")
            if key in table:
                return table.refusal(key, why)
        return ConfigurationError(f"{key}, by default: {why}")


def load(path: Path) -> Settings:
    """Read the settings from a file. Raises `ConfigurationError`, which names file, key, line and what is allowed."""
    table = _table(path)
    given: dict[str, Any] = {key: read(table, key) for key, read in _READERS.items() if key in table}
    table.finish()
    return replace(Settings(), **given)


def confirmed(settings: Settings, blame: Blame = by_key) -> Settings:
    """The settings, if they go together. Raises what `blame` makes, a `ConfigurationError` that names the key."""
    if settings.xapi_socket is not None and settings.toolstack != "embedded":
        raise blame("xapi_socket", f"only the embedded toolstack answers xapi's clients, not {settings.toolstack}")
    if settings.xapi_socket == settings.control:
        raise blame("xapi_socket", f"{settings.control} is the control socket")
    if settings.headroom is not None and settings.headroom > DATA_LIMIT:
        # The option has no bound of its own; in a file it is the key's.
        raise blame("headroom", f"expected a whole number from 0 to {DATA_LIMIT:,}, found {settings.headroom:,}")
    for key, path in (("control", settings.control), ("xapi_socket", settings.xapi_socket)):
        if path is not None and (not path.is_absolute() or len(os.fsencode(path)) > MAX_PATH):
            raise blame(key, f"{path}: expected an absolute path of at most {MAX_PATH} bytes")
    return settings


def _table(path: Path) -> Table:
    """The file's keys. Raises `ConfigurationError`."""
    try:
        return strict_toml.load(read_file(path, FILE_LIMIT).decode(), os.fspath(path))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, MalformedError) as error:
        raise ConfigurationError(f"{path}: {error}") from None


def changed(before: Settings, after: Settings) -> tuple[str, ...]:
    """The keys whose values differ."""
    return tuple(each.name for each in fields(Settings) if getattr(before, each.name) != getattr(after, each.name))


def _is_absent(path: Path) -> bool:
    """Whether there is surely no such file: one that cannot be looked at is an error of its own."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _path(table: Table, key: str) -> Path:
    return Path(table.absolute_path(key))


def _toolstack(table: Table, key: str) -> str:
    return table.choice(key, {each: each for each in TOOLSTACKS})


def _headroom(table: Table, key: str) -> int:
    # No variable may be larger than that, so more can never be left.
    return table.integer(key, DATA_LIMIT)


def _late_seconds(table: Table, key: str) -> int:
    return table.integer(key, LONGEST_LATE_SECONDS)


def _limit(table: Table, key: str) -> int:
    return table.integer(key, LARGEST_LIMIT)


def _limit_from_1(table: Table, key: str) -> int:
    return table.integer(key, LARGEST_LIMIT, least=1)


_READERS: Mapping[str, Callable[[Table, str], object]] = {
    "control": _path,
    "state_dir": _path,
    "toolstack": _toolstack,
    "xapi": _path,
    "certificates": _path,
    "auth_dir": _path,
    "manifest": _path,
    "headroom": _headroom,
    "late_seconds": _late_seconds,
    "xapi_socket": _path,
    **dict.fromkeys(LIMITS, _limit),
    "updates_at_once": _limit_from_1,
}
