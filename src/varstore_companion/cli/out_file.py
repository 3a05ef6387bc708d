"""A file that a command was told to write: whole or not at all."""

import os
import secrets
from pathlib import Path

from varstore_companion.cli import output
from varstore_companion.cli.named import InputError, shown
from varstore_companion.journal import files


def write(name: str, data: bytes, *, mode: int = 0o666) -> None:
    """Write `data` to the file of that name, or to standard output for `-`. A file that is there keeps its mode and owner.

    `mode`: of a new file, less what the umask takes. Raises `InputError`, and as `output.raw` does.
    """
    if name == "-":
        output.raw(data)
        return
    try:
        _write_file(Path(name), data, mode)
    except OSError as error:
        raise InputError(f"{shown(name)}: cannot be written: {error.strerror}") from None


def _write_file(path: Path, data: bytes, mode: int) -> None:
    if path.exists() and not path.is_file():
        # A device or a pipe takes no rename over it.
        with path.open("wb") as file:
            file.write(data)
        return
    if path.is_symlink():
        # Somebody else may have put it there, and what it leads to is not what was named.
        raise InputError(f"{path}: is a symbolic link to {path.readlink()}: name the file itself")
    new = path.with_name(f".varstore-companion-{secrets.token_hex(8)}{files.NEW}")
    if path.exists():
        # Whoever reads it, as a varstored that runs as a user of its own, has to be able to afterwards.
        there = path.stat()
        files.write(path, data, there.st_mode & 0o777, new=new, owner=(there.st_uid, there.st_gid))
    else:
        files.write(path, data, mode & ~_umask(), new=new)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
