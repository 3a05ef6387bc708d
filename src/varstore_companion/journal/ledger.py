"""What the toolstack may hold of each VM, kept where a crash of the daemon does not reach, and without any fsync.

A write that was under way when the daemon was killed may still be carried out by the toolstack, after the next daemon has
begun to write. So it is noted before it goes out, in the kernel's page cache: a killed process leaves that as it is, and a
host that goes down takes its VMs along, after which nothing noted here counts any more.
"""

import logging
import os
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID
from zlib import crc32

from varstore_companion.journal import files

log = logging.getLogger(__name__)

MAX_VMS = 4_096
"""VMs that are kept; the one that has not been written to for the longest gives way."""

_MAGIC = b"VSCLEDG1"
_HEADER = struct.Struct("<8s36s20x")
_SLOT = struct.Struct("<16s32s32sI")
"""VM, digest of the store held, digest of the one that is sent (zeros: none), CRC-32 of all before it."""
_NONE = bytes(32)


@dataclass(frozen=True, slots=True)
class Noted:
    """SHA-256 digests: of the store that the toolstack held, and of the one that was under way to it, if one was."""

    held: bytes
    sent: bytes | None


class Ledger:
    """The ledger in the file `path`. `open` first; one that is of another boot of the host is begun anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._slots: OrderedDict[UUID, int] = OrderedDict()
        self._free: list[int] = []
        self._used = 0
        self._noted: dict[UUID, Noted] = {}
        self._failed = False
        # What the file has to begin with and does not yet.
        self._header = b""

    def open(self) -> None:
        """Read what the daemon before left. Raises `OSError`, but not on a full disk: no VM must wait for that one.

        Where the kernel does not say which start of the host this is, nothing that was left can be trusted.
        """
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        start = files.host_start()
        if start is None:
            log.warning("%s: which start of the host this is cannot be read: it is begun anew", self._path)
        header = _HEADER.pack(_MAGIC, (start or "").encode())
        data = os.pread(self._descriptor, _HEADER.size + MAX_VMS * _SLOT.size, 0)
        if start is None or data[: _HEADER.size] != header:
            os.ftruncate(self._descriptor, 0)
            self._header = header
            self._begin()
            return
        self._used = (len(data) - _HEADER.size) // _SLOT.size
        for slot in range(self._used):
            raw = data[_HEADER.size + slot * _SLOT.size :][: _SLOT.size]
            vm, held, sent, check = _SLOT.unpack(raw)
            if crc32(raw[:-4]) == check:
                uuid = UUID(bytes=vm)
                self._noted[uuid] = Noted(held, None if sent == _NONE else sent)
                self._slots[uuid] = slot
            else:
                self._free.append(slot)

    def close(self) -> None:
        """Release the file, which stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def noted(self, vm: UUID) -> Noted | None:
        """What was noted of a VM last, by this daemon or the one before."""
        return self._noted.get(vm)

    def note(self, vm: UUID, held: bytes, sent: bytes | None = None) -> None:
        """Note what the toolstack holds of a VM, and what is under way to it.

        A file that cannot be written to is logged once: a crash then costs what it would cost without a ledger.
        """
        self._noted[vm] = Noted(held, sent)
        if vm in self._slots:
            self._slots.move_to_end(vm)
        elif len(self._slots) < MAX_VMS:
            if not self._free:
                self._free.append(self._used)
                self._used += 1
            self._slots[vm] = self._free.pop()
        else:
            oldest, self._slots[vm] = self._slots.popitem(last=False)
            del self._noted[oldest]
        body = vm.bytes + held + (sent or _NONE)
        self._write(self._slots[vm], body + crc32(body).to_bytes(4, "little"))

    def forget(self, vm: UUID) -> None:
        """Keep nothing of a VM: it may have been written to past this daemon."""
        slot = self._slots.pop(vm, None)
        if slot is not None:
            del self._noted[vm]
            self._free.append(slot)
            self._write(slot, bytes(_SLOT.size))

    def _begin(self) -> None:
        """Write the header, which makes the rest count."""
        try:
            os.pwrite(self._descriptor, self._header, 0)
            self._header = b""
        except OSError as error:
            self._complain(error)

    def _write(self, slot: int, data: bytes) -> None:
        if self._header:
            self._begin()
        try:
            os.pwrite(self._descriptor, data, _HEADER.size + slot * _SLOT.size)
        except OSError as error:
            self._complain(error)
        else:
            self._failed = False

    def _complain(self, error: OSError) -> None:
        if not self._failed:
            log.warning("%s: %s: what is under way to the toolstack cannot be noted", self._path, error.strerror)
        self._failed = True
