"""The few system calls of the journal, all through one object: a test records them, or makes them fail."""

import os
from pathlib import Path


class Disk:
    """Each method is one step that a crash can fall before or after. Paths and descriptors as in `os`.

    Every method raises `OSError`. They block; two threads may call at once, for different files.
    """

    def __init__(self) -> None:
        self.syncs = 0

    def names(self, folder: Path) -> list[str]:
        """The names in a folder, in no order."""
        return [path.name for path in folder.iterdir()]

    def make_folder(self, path: Path) -> bool:
        """Make a folder for its owner alone; False when it is there. Its name is durable after `sync_folder` of its parent."""
        try:
            path.mkdir(0o700)
        except FileExistsError:
            if not path.is_dir():
                raise
            return False
        return True

    def sync_folder(self, path: Path) -> None:
        """Make what was created, renamed or removed in a folder durable."""
        self.syncs += 1
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def create(self, path: Path) -> int:
        """A descriptor to write a file that must not be there yet."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, descriptor: int, data: bytes) -> None:
        """Write all of `data` at the descriptor's position, or raise: a part of it may be written then."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def sync(self, descriptor: int) -> None:
        """Make a file's bytes and its length durable."""
        self.syncs += 1
        os.fdatasync(descriptor)

    def is_at(self, descriptor: int, path: Path) -> bool:
        """Whether the descriptor's file is the one that `path` names."""
        try:
            named = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(os.fstat(descriptor), named)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        os.close(descriptor)

    def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes:
        """A file's bytes, or those of a range of it; fewer when it ends before."""
        descriptor = self._open(path)
        try:
            left = os.fstat(descriptor).st_size - offset if length is None else length
            parts = []
            while left > 0 and (part := os.pread(descriptor, left, offset)):
                parts.append(part)
                offset += len(part)
                left -= len(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)

    def cut(self, path: Path, length: int) -> None:
        """Cut a file back to `length` bytes, durably."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.ftruncate(descriptor, length)
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def sync_file(self, path: Path) -> None:
        """Make durable what a file holds that an earlier process may have left unsynced."""
        descriptor = self._open(path)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in place of a file that had it."""
        old.rename(new)

    def unlink(self, path: Path) -> None:
        """Remove a file, which may be gone already."""
        path.unlink(missing_ok=True)

    def allocate(self, path: Path, length: int) -> None:
        """Make a file take up `length` bytes of the disk, whatever it holds."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, length)
        finally:
            os.close(descriptor)

    @staticmethod
    def _open(path: Path) -> int:
        # A pipe in a file's place must not be waited for.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
