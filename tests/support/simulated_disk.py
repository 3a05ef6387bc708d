"""A disk for the journal in memory, which loses, tears and reorders what has not been synced when it crashes.

Everything is kept as immutable values: the state at any moment is a `Tree`, cheap to keep for each step of a run. What has
not been synced is a list of changes; a crash decides for each of them, on its own, whether it reached the disk. Sectors of
one write reach it or do not, one by one; names likewise, also those given later than others that are lost.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from random import Random
from typing import Self

from varstore_companion.journal.disk import Disk

SECTOR = 512


@dataclass(frozen=True, slots=True)
class Change:
    """One write, or (`data` None) one cut, not yet synced."""

    offset: int
    data: bytes | None

    def on(self, before: bytes) -> bytes:
        if self.data is None:
            return before[: self.offset].ljust(self.offset, b"\0")
        return before[: self.offset].ljust(self.offset, b"\0") + self.data + before[self.offset + len(self.data) :]


@dataclass(frozen=True, slots=True)
class File:
    """A file: what a reader sees, what is on the disk for certain, and what lies between."""

    seen: bytes = b""
    durable: bytes = b""
    changes: tuple[Change, ...] = ()

    def changed(self, change: Change) -> "File":
        return replace(self, seen=change.on(self.seen), changes=(*self.changes, change))

    def synced(self) -> "File":
        return replace(self, durable=self.below, changes=())

    @property
    def below(self) -> bytes:
        """What there is for certain, and all changes."""
        data = self.durable
        for change in self.changes:
            data = change.on(data)
        return data


Names = dict[str, int]
"""Name to the number of a file."""
Renaming = tuple[tuple[str, int | None], ...]
"""Names that change together; None: removed."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder's names, as `File`. `name_is_durable`: its own, in its parent."""

    seen: Names = field(default_factory=dict)
    durable: Names = field(default_factory=dict)
    changes: tuple[Renaming, ...] = ()
    name_is_durable: bool = False

    def changed(self, *renaming: tuple[str, int | None]) -> "Folder":
        return replace(self, seen=renamed(self.seen, renaming), changes=(*self.changes, renaming))

    def synced(self) -> "Folder":
        return replace(self, durable=self.seen, changes=())


def renamed(names: Names, renaming: Renaming) -> Names:
    names = dict(names)
    for name, number in renaming:
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number
    return names


@dataclass(frozen=True, slots=True)
class Tree:
    """All that a disk is, at one moment."""

    files: dict[int, File]
    folders: dict[Path, Folder]


class Crash(Enum):
    """What becomes of what was not synced."""

    KILLED = "all of it is there: only the process is gone"
    LOST = "none of it"
    TORN = "any part of it"


class SimulatedDisk(Disk):
    """A `Disk` on a `Tree`. `before`: called before each step with its name and path; what it raises is the step's error."""

    def __init__(self, tree: Tree, before: Callable[[str, Path], None] = lambda _name, _path: None) -> None:
        super().__init__()
        self._files = dict(tree.files)
        self._folders = dict(tree.folders)
        self._descriptors: dict[int, tuple[int, Path, int]] = {}
        self._next = max(self._files, default=0) + 1
        self.before = before

    @classmethod
    def new(cls, parent: Path) -> Self:
        """An empty disk, but for the folder `parent`."""
        return cls(Tree({}, {parent: Folder(name_is_durable=True)}))

    @property
    def tree(self) -> Tree:
        return Tree(dict(self._files), dict(self._folders))

    # Disk

    def names(self, folder: Path) -> list[str]:
        inside = [path.name for path in self._folders if path.parent == folder and path != folder]
        return [*self._folder(folder).seen, *inside]

    def make_folder(self, path: Path) -> bool:
        if path in self._folders:
            return False
        self.before("make_folder", path)
        self._folder(path.parent)
        self._folders[path] = Folder()
        return True

    def sync_folder(self, path: Path) -> None:
        self.syncs += 1
        self.before("sync_folder", path)
        self._folders[path] = self._folder(path).synced()
        for inner, folder in self._folders.items():
            if inner.parent == path:
                self._folders[inner] = replace(folder, name_is_durable=True)

    def create(self, path: Path) -> int:
        self.before("create", path)
        if path.name in self._folder(path.parent).seen:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        number = self._make(path)
        descriptor = max(self._descriptors, default=2) + 1
        self._descriptors[descriptor] = number, path, 0
        return descriptor

    def write(self, descriptor: int, data: bytes) -> None:
        number, path, position = self._descriptors[descriptor]
        try:
            self.before("write", path)
        except OSError:
            # A part of it is written.
            self._change(number, Change(position, data[: len(data) // 3]))
            raise
        self._change(number, Change(position, data))
        self._descriptors[descriptor] = number, path, position + len(data)

    def sync(self, descriptor: int) -> None:
        number, path, _ = self._descriptors[descriptor]
        self._sync(number, path)

    def cut(self, path: Path, length: int) -> None:
        number = self._number(path)
        self.before("cut", path)
        self._change(number, Change(length, None))
        self._sync(number, path)

    def is_at(self, descriptor: int, path: Path) -> bool:
        return (
            path.parent in self._folders and self._folders[path.parent].seen.get(path.name) == self._descriptors[descriptor][0]
        )

    def close(self, descriptor: int) -> None:
        del self._descriptors[descriptor]

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes:
        seen = self._files[self._number(path)].seen
        return seen[offset:] if length is None else seen[offset : offset + length]

    def sync_file(self, path: Path) -> None:
        self._sync(self._number(path), path)

    def rename(self, old: Path, new: Path) -> None:
        number = self._number(old)
        self.before("rename", old)
        if old.parent == new.parent:
            self._folders[old.parent] = self._folder(old.parent).changed((old.name, None), (new.name, number))
        else:
            self._folders[new.parent] = self._folder(new.parent).changed((new.name, number))
            self._folders[old.parent] = self._folder(old.parent).changed((old.name, None))

    def unlink(self, path: Path) -> None:
        folder = self._folder(path.parent)
        if path.name in folder.seen:
            self.before("unlink", path)
            self._folders[path.parent] = folder.changed((path.name, None))

    def allocate(self, path: Path, length: int) -> None:
        self.before("allocate", path)
        there = self._folder(path.parent).seen.get(path.name)
        number = self._make(path) if there is None else there
        self._change(number, Change(0, bytes(min(length, SECTOR))))

    # What is below

    def _folder(self, path: Path) -> Folder:
        if path not in self._folders:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self._folders[path]

    def _number(self, path: Path) -> int:
        number = self._folder(path.parent).seen.get(path.name)
        if number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return number

    def _make(self, path: Path) -> int:
        number, self._next = self._next, self._next + 1
        self._folders[path.parent] = self._folder(path.parent).changed((path.name, number))
        self._files[number] = File()
        return number

    def _change(self, number: int, change: Change) -> None:
        self._files[number] = self._files[number].changed(change)

    def _sync(self, number: int, path: Path) -> None:
        self.syncs += 1
        try:
            self.before("sync", path)
        except OSError:
            # Linux marks the pages clean: nobody writes them any more, and the next sync succeeds. Every second is lost.
            file = self._files[number]
            kept = file.changes[::2]
            self._files[number] = replace(replace(file, changes=kept).synced(), seen=file.seen)
            raise
        self._files[number] = self._files[number].synced()


def crashed(tree: Tree, crash: Crash, chance: Random) -> Tree:
    """What a disk holds after a crash, durably. Folders below one whose name is lost are lost with it."""
    files = {number: _file(file, crash, chance) for number, file in tree.files.items()}
    folders: dict[Path, Folder] = {}
    for path, folder in sorted(tree.folders.items()):
        is_there = folder.name_is_durable or crash is Crash.KILLED or (crash is Crash.TORN and chance.random() < 0.5)
        if is_there and (path.parent in folders or not folders):
            names = _names(folder, crash, chance)
            # Only a kill leaves what is seen; it is still to be synced.
            unsynced = crash is Crash.KILLED
            folders[path] = folder if unsynced else Folder(names, names, (), name_is_durable=True)
    return Tree(files, folders)


def _file(file: File, crash: Crash, chance: Random) -> File:
    if crash is Crash.KILLED:
        # Not what a failed sync has left in memory alone: a reader could not tell that it will never reach the disk.
        return replace(file, seen=file.below)
    data = file.durable
    if crash is Crash.TORN:
        for change in file.changes:
            data = _torn(change, data, chance)
    return File(data, data)


def _torn(change: Change, before: bytes, chance: Random) -> bytes:
    kind = chance.randrange(6)
    if kind == 0:
        return before
    if kind == 1 or change.data is None:
        return change.on(before)
    data = change.data
    if kind == 2:
        return Change(change.offset, data[: chance.randrange(len(data) + 1)]).on(before)
    sectors = [data[start : start + SECTOR] for start in range(0, len(data), SECTOR)]
    if kind == 3 and sectors:
        sectors[chance.randrange(len(sectors))] = bytes(SECTOR)
    elif kind == 4:
        # The length is there, the bytes are not.
        sectors = [bytes(SECTOR) for _ in sectors]
    else:
        sectors = [each if chance.random() < 0.5 else bytes(len(each)) for each in sectors]
    return Change(change.offset, b"".join(sectors)).on(before)


def _names(folder: Folder, crash: Crash, chance: Random) -> Names:
    if crash is Crash.KILLED:
        return folder.seen
    names = folder.durable
    if crash is Crash.TORN:
        for renaming in folder.changes:
            if chance.random() < 0.5:
                names = renamed(names, renaming)
    return names
