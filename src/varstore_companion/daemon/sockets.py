"""The VMs' sockets: attached, remembered, brought back after a restart, detached."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import trio

from varstore_companion.daemon import attachments, listen
from varstore_companion.daemon.acceptor import Acceptor, Places
from varstore_companion.daemon.attachments import Attachment, NewerListError
from varstore_companion.daemon.host import Host
from varstore_companion.daemon.kept import Kept
from varstore_companion.daemon.listen import Bound
from varstore_companion.daemon.session import RequestRefusedError, too_many
from varstore_companion.daemon.vm import Vm
from varstore_companion.daemon.vm_socket import VmSocket
from varstore_companion.errors import ConfigurationError
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Socket

log = logging.getLogger(__name__)

VM_CONNECTIONS = 8
"""Connections to one VM's socket: its varstored has one, a tool or two beside it."""
ALL_CONNECTIONS = 4_096
"""Connections to all VMs' sockets together: each can hold a frame of a quarter of a MiB."""


class Sockets:
    """The attached sockets. `saved`: the file in which they are remembered; `vm_of`: the daemon's side of a VM.

    They are served in the daemon's nursery, which `host` has. `kept`: where they are while no daemon runs.
    """

    def __init__(self, host: Host, saved: Path, vm_of: Callable[[UUID], Vm], kept: Kept) -> None:
        self._host = host
        self._saved = saved
        self._vm_of = vm_of
        self._kept = kept
        self._sockets: dict[Path, tuple[Attachment, Acceptor]] = {}
        self._changing = trio.Lock()
        self._places = Places(ALL_CONNECTIONS)

    def __len__(self) -> int:
        return len(self._sockets)

    def __getitem__(self, path: Path) -> tuple[Attachment, Acceptor]:
        return self._sockets[path]

    def acceptors(self) -> Iterator[Acceptor]:
        """What serves each of them."""
        for _, acceptor in self._sockets.values():
            yield acceptor

    def of(self, vm: UUID) -> list[str]:
        """The paths of a VM's sockets."""
        return [os.fspath(path) for path, (attachment, _) in self._sockets.items() if attachment.vm == vm]

    async def attach(self, attachment: Attachment) -> bool:
        """Serve a socket and remember it; True when the very same one is served already. Raises `ConfigurationError`."""
        async with self._changing:
            there = self._sockets.get(attachment.path)
            if there is not None:
                if there[0] != attachment:
                    raise RequestRefusedError(
                        ErrorCode.CONFLICT, f"{attachment.path}: attached otherwise: vm={there[0].vm} {there[0].describe()}"
                    )
                if there[1].bound.is_in_place():
                    return True
                log.warning("vm=%s %s had been removed: it is made again", attachment.vm, attachment.path)
                made = self._serve(attachment, fresh=False)
                there[1].stop()
                await self._kept.keep(made)
                await self._kept.forget(there[1].bound)
                return False
            made = self._serve(attachment, fresh=True)
            try:
                await self._save(attachment for attachment, _ in self._sockets.values())
            except OSError as error:
                self._drop(attachment.path)
                raise ConfigurationError(f"{self._saved}: {error.strerror}: {attachment.path} is not attached") from None
            await self._kept.keep(made)
        log.info("vm=%s attached %s", attachment.vm, attachment.path)
        return False

    async def detach(self, path: Path) -> bool:
        """Stop serving a socket, remove and forget it; False when it was not served. Raises `ConfigurationError`."""
        async with self._changing:
            if path not in self._sockets:
                return False
            try:
                await self._save(attachment for other, (attachment, _) in self._sockets.items() if other != path)
            except OSError as error:
                raise ConfigurationError(f"{self._saved}: {error.strerror}: {path} stays attached") from None
            bound = self._sockets[path][1].bound
            attachment = self._drop(path)
            await self._kept.forget(bound)
        log.info("vm=%s detached %s", attachment.vm, path)
        return True

    def listed(self) -> list[dict[str, object]]:
        """Every attached socket with what is known of its VM, by path."""
        return [
            attachment.describe() | {"connections": acceptor.connections} | describe_vm(self._vm_of(attachment.vm))
            for _, (attachment, acceptor) in sorted(self._sockets.items(), key=lambda item: os.fsencode(item[0]))
        ]

    async def bring_back(self) -> None:
        """Serve every socket that was attached when the last daemon ended. Raises `NewerListError`."""
        try:
            saved = await trio.to_thread.run_sync(attachments.load, self._saved)
        except NewerListError:
            raise
        except (ConfigurationError, OSError) as error:
            aside = self._saved.with_name(f"{self._saved.name}.unreadable")
            with suppress(OSError):
                self._saved.rename(aside)
            log.error("no socket comes back, the list is put aside as %s: %s", aside, error)  # noqa: TRY400  the reason is enough
            return
        for attachment in saved:
            try:
                self._serve(attachment, fresh=False)
            except ConfigurationError as error:
                log.warning("vm=%s its socket does not come back: %s", attachment.vm, error)
        for acceptor in list(self.acceptors()):
            await self._kept.keep(acceptor.bound)

    def _serve(self, attachment: Attachment, *, fresh: bool) -> Bound:
        nursery = self._host.nursery
        if nursery is None:
            raise AssertionError("the daemon does not run")
        self._confirm_upstream(attachment)
        mode, gid = attachment.mode, attachment.gid
        bound = self._kept.take(attachment.path, mode=mode, gid=gid) or listen.bind(attachment.path, mode=mode, gid=gid)
        vm = self._vm_of(attachment.vm)
        acceptor = Acceptor(
            bound,
            busy=too_many(Socket.VM),
            who=f"vm={vm.uuid}",
            most=VM_CONNECTIONS,
            places=self._places,
            host=self._host,
            nursery=nursery,
            make=VmSocket(attachment, vm, fresh=fresh).session,
        )
        self._sockets[attachment.path] = (attachment, acceptor)
        if self._host.upstreams is not None:
            self._host.upstreams.set_upstream(attachment.vm, attachment.upstream)
        nursery.start_soon(acceptor.run, name=f"socket of vm={vm.uuid}")
        return bound

    def _drop(self, path: Path) -> Attachment:
        attachment, acceptor = self._sockets.pop(path)
        acceptor.stop()
        acceptor.bound.unlink()
        if self._host.upstreams is not None:
            # A VM that migrates on its host has two sockets for a while, each with its own upstream.
            left = [other.upstream for other, _ in self._sockets.values() if other.vm == attachment.vm]
            self._host.upstreams.set_upstream(attachment.vm, left[-1] if left else None)
        return attachment

    def _confirm_upstream(self, attachment: Attachment) -> None:
        name = self._host.toolstack.name
        if self._host.upstreams is None and attachment.upstream is not None:
            raise ConfigurationError(f"{attachment.path}: upstream: the {name} toolstack has no socket for each VM")
        if self._host.upstreams is not None and attachment.upstream is None:
            raise ConfigurationError(f"{attachment.path}: upstream: the {name} toolstack needs the VM's own socket there")

    async def _save(self, kept: Iterable[Attachment]) -> None:
        await trio.to_thread.run_sync(attachments.save, self._saved, tuple(kept))


def describe_vm(vm: Vm) -> dict[str, object]:
    """What is known of a VM, as plain values for JSON."""
    last = vm.last_update
    return {
        "report": vm.report,
        "field": vm.field,
        "last_verdict": vm.last_verdict,
        "last_update": None if last is None else {"at": last.at, "outcome": last.outcome.value, "detail": last.detail},
    }
