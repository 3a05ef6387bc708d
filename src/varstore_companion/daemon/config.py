"""What the daemon is told: a TOML file, and options that go before it."""

import os
from dataclasses import dataclass
from pathlib import Path

from varstore_companion import strict_toml
from varstore_companion.errors import ConfigurationError, MalformedError
from varstore_companion.files import read_file
from varstore_companion.paths import CONTROL, STATE_DIR, VARSTORED_AUTH, XAPI
from varstore_companion.toolstack.remote import LATE_SECONDS

FILE_LIMIT = 65_536
TOOLSTACKS = ("embedded", "guard", "xapi")


@dataclass(frozen=True, slots=True)
class Settings:
    """The daemon's settings; each name is its key in the file.

    `certificates`: a folder with more certificate bodies; `auth_dir`: where varstored's `.auth` files are; `manifest`: a file
    instead of the shipped one; `headroom`: bytes that an update must leave for the next append to dbx instead of the
    manifest's; `late_seconds`: for how long a guard or xapi may still carry out a call that was given up; `xapi`: xapi's own
    socket, for the toolstack of that name; `xapi_socket`: where the embedded toolstack answers xapi's clients, nowhere unless
    it is given.
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


def load(path: Path) -> Settings:
    """Read the settings from a file. Raises `ConfigurationError`, which names the file, the key and what is allowed."""
    try:
        table = strict_toml.load(read_file(path, FILE_LIMIT).decode(), os.fspath(path))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, MalformedError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    default = Settings()

    def a_path(key: str, otherwise: Path) -> Path:
        return Path(table.text(key)) if key in table else otherwise

    settings = Settings(
        control=a_path("control", default.control),
        state_dir=a_path("state_dir", default.state_dir),
        toolstack=table.choice("toolstack", {each: each for each in TOOLSTACKS}) if "toolstack" in table else default.toolstack,
        xapi=a_path("xapi", default.xapi),
        certificates=Path(table.text("certificates")) if "certificates" in table else None,
        auth_dir=a_path("auth_dir", default.auth_dir),
        manifest=Path(table.text("manifest")) if "manifest" in table else None,
        headroom=table.integer("headroom") if "headroom" in table else None,
        late_seconds=table.integer("late_seconds") if "late_seconds" in table else default.late_seconds,
        xapi_socket=Path(table.text("xapi_socket")) if "xapi_socket" in table else None,
    )
    table.finish()
    return settings
