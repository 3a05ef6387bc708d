"""Whether the places that the settings name could be used: looked at, and nothing made, opened or changed.

What cannot be told beforehand is left to the start: whether somebody listens at a socket, what a file system refuses by itself,
and, for any other user than root, what root may do.
"""

import errno
import os
import stat
from collections.abc import Callable, Container, Mapping
from pathlib import Path

from varstore_companion.daemon.config import Blame, Settings
from varstore_companion.errors import ConfigurationError


def confirm(settings: Settings, blame: Blame, keys: Container[str] | None = None) -> None:
    """Raise what `blame` makes, a `ConfigurationError`, for a place that could surely not be used.

    `keys`: those that are looked at, all of them unless it is given. The files that rules are made from are `rules.load`'s.
    """
    for key, look in _LOOKS.items():
        if keys is None or key in keys:
            try:
                look(settings)
            except ConfigurationError as error:
                raise blame(key, str(error)) from None


def _state_dir(settings: Settings) -> None:
    _confirm_writable(_nearest(settings.state_dir))


def _control(settings: Settings) -> None:
    _confirm_socket(settings.control)
    folder = settings.control.parent
    nearest = _nearest(folder)
    if nearest != folder:
        # One that is there may be a socket unit's, in which the daemon writes nothing.
        _confirm_writable(nearest)


def _xapi_socket(settings: Settings) -> None:
    if settings.xapi_socket is None:
        return
    _confirm_socket(settings.xapi_socket)
    folder = settings.xapi_socket.parent
    # The daemon makes no folder for it but those that it makes for itself.
    made = (settings.state_dir, settings.control.parent)
    if _nearest(folder) != folder and not any(each.is_relative_to(folder) for each in made):
        raise ConfigurationError(f"{folder}: there is no such folder")


def _xapi(settings: Settings) -> None:
    if settings.toolstack == "xapi":
        _confirm_socket(settings.xapi)
        _nearest(settings.xapi.parent)


_LOOKS: Mapping[str, Callable[[Settings], None]] = {
    "state_dir": _state_dir,
    "control": _control,
    "xapi_socket": _xapi_socket,
    "xapi": _xapi,
}


def _confirm_socket(path: Path) -> None:
    """Refuse what is there and is no socket. One that is not there yet may come."""
    found = _look(path)
    if found is not None and not stat.S_ISSOCK(found.st_mode):
        raise ConfigurationError(f"{path}: exists and is not a socket")


def _nearest(path: Path) -> Path:
    """The folder, or of those above it the one in which it could be made. Refuses what is no folder."""
    for place in (path, *path.absolute().parents):
        found = _look(place)
        if found is None and os.path.islink(place):  # noqa: PTH114  Path's raises where a folder cannot be read
            raise ConfigurationError(f"{place}: a link that leads nowhere")
        if found is not None and not stat.S_ISDIR(found.st_mode):
            raise ConfigurationError(f"{place}: exists and is not a folder")
        if found is not None:
            return place
    return path


def _confirm_writable(folder: Path) -> None:
    if _is_root() and not os.access(folder, os.W_OK | os.X_OK):
        is_read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        raise ConfigurationError(f"{folder}: {os.strerror(errno.EROFS if is_read_only else errno.EACCES)}")


def _look(path: Path) -> os.stat_result | None:
    """What is there; None when nothing is, or when it cannot be told. A file on the way is found when that is looked at."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        if _is_root():
            raise ConfigurationError(f"{path}: {error.strerror}") from None
        return None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None


def _is_root() -> bool:
    return os.geteuid() == 0
