"""The folder for what was found damaged: never read again by the program, kept for a person."""

import re
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from varstore_companion.journal.disk import Disk
from varstore_companion.journal.entry import Damage

KEPT: Final = 64 * 2**20
"""Bytes of all copies. When they are reached, a damage is only reported, until a person has emptied the folder."""
_NEW = ".new"

_COPY = re.compile(r"([0-9a-f]{8})-[0-9a-f]{8}-([0-9a-f]{8})-[0-9a-f]{16}")
_WHOLE = re.compile(r"([0-9a-f]{8})\.segment")


class Aside:
    """The folder. A damaged range is kept as `SEGMENT-OFFSET-LENGTH-DIGEST`, in hexadecimal, so it is kept once.

    Every method raises `OSError`.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder = folder
        self._disk = disk

    def newest(self) -> int:
        """The highest number of a segment from which something is here, 0 when there is nothing."""
        numbers = [int(match[1], 16) for name in self._names() if (match := _COPY.match(name) or _WHOLE.match(name))]
        return max(numbers, default=0)

    def keep(self, segment: Path, damage: Damage) -> None:
        """Copy what is damaged in a segment, durably, unless that has been done, or the folder holds too much."""
        if not damage.length:
            return
        data = self._disk.read(segment, damage.offset, damage.length)
        name = f"{segment.stem}-{damage.offset:08x}-{len(data):08x}-{sha256(data).hexdigest()[:16]}"
        self._make()
        names = self._names()
        held = sum(int(match[2], 16) for each in names if (match := _COPY.fullmatch(each)))
        if name in names or held + len(data) > KEPT:
            return
        new = self._folder / f"{name}{_NEW}"
        self._disk.unlink(new)
        descriptor = self._disk.create(new)
        try:
            self._disk.write(descriptor, data)
            self._disk.sync(descriptor)
        except OSError:
            with suppress(OSError):
                self._disk.unlink(new)
            raise
        finally:
            self._disk.close(descriptor)
        self._disk.rename(new, self._folder / name)
        self._disk.sync_folder(self._folder)

    def move(self, segment: Path) -> None:
        """Put a whole segment here that the disk cannot read."""
        self._make()
        self._disk.rename(segment, self._folder / segment.name)
        self._disk.sync_folder(self._folder)

    def _make(self) -> None:
        if self._disk.make_folder(self._folder):
            self._disk.sync_folder(self._folder.parent)

    def _names(self) -> list[str]:
        with suppress(FileNotFoundError):
            return self._disk.names(self._folder)
        return []
