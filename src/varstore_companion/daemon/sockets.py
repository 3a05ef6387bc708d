"""The VMs' sockets: attached, detached, brought back after a restart, and taken over again from a guard that restarts."""

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary

import trio

from varstore_companion import threads
from varstore_companion.daemon import attachments, interpose, listen
from varstore_companion.daemon.acceptor import Acceptor, Places
from varstore_companion.daemon.attachments import Attachment
from varstore_companion.daemon.complaints import Complaints
from varstore_companion.daemon.host import Host
from varstore_companion.daemon.kept import Kept
from varstore_companion.daemon.listen import Access, Bound
from varstore_companion.daemon.looks import Looks
from varstore_companion.daemon.session import RequestRefusedError, too_many
from varstore_companion.daemon.vm import Vm
from varstore_companion.daemon.vm_socket import VmSocket
from varstore_companion.errors import ConfigurationError, RefusedBySystemError
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Socket

log = logging.getLogger(__name__)

VM_CONNECTIONS = 8
"""Connections to one VM's socket: its varstored has one, a tool or two beside it."""
ALL_CONNECTIONS = 4_096
"""Connections to all VMs' sockets together: each can hold a frame of a quarter of a MiB."""
AGAIN_SECONDS = (1.0, 30.0)
"""The first pause before what the system refused at the start is tried again, doubled up to the second."""
FORMER_SECONDS = 6.0
"""For what comes through a guard's former socket to end, before it is taken over again; no other VM's attach waits for that."""
WATCH_SECONDS = 1.0
"""Between two looks at the guards' sockets that are taken over: for so long a guard that restarts has its socket to itself."""


class Attached(NamedTuple):
    """An attachment that is served."""

    attachment: Attachment
    acceptor: Acceptor
    socket: VmSocket

    def describe(self) -> dict[str, object]:
        """As plain values for JSON."""
        return self.attachment.describe() | {"connections": self.acceptor.connections, "boot_left": self.socket.boot_is_left}


class Sockets:
    """The sockets, listed in the file `saved`. `vm` gives the daemon's side of a VM; `others`: what else the daemon listens on.

    `served`: by path; `missing`: those of the list that the system refused at the start, by path, which are tried again;
    `kept`: where they are while no daemon runs. `start` comes before everything else.
    """

    def __init__(self, host: Host, saved: Path, vm: Callable[[UUID], Vm], others: Iterable[Bound], kept: Kept) -> None:
        self._host = host
        self._saved = saved
        self._vm = vm
        self._others = tuple(others)
        self._kept = kept
        self.served: dict[Path, Attached] = {}
        self.missing: dict[Path, Attachment] = {}
        self.places = Places(ALL_CONNECTIONS)
        self._retiring: set[Attached] = set()
        # Those that serve a last request of a connection though their sockets are gone.
        self._stopped: WeakKeyDictionary[Acceptor, UUID] = WeakKeyDictionary()
        self._changing = trio.Lock()
        self._looks = Looks(lambda vm: bool(self.of(vm)))
        self._is_saved = True
        self._complaints = Complaints("a guard of", log)
        self._nursery: trio.Nursery | None = None

    async def start(self, nursery: trio.Nursery) -> None:
        """Bring the saved sockets back, as tasks of `nursery`. Raises as `attachments.load_or_put_aside`."""
        self._nursery = nursery
        await self._bring_back()
        if self.missing:
            nursery.start_soon(self._return_missing, name="sockets that are not back yet")
        if self._host.upstreams is not None:
            nursery.start_soon(self._watch, name="watch over guards' sockets")

    def of(self, vm: UUID) -> list[Attached]:
        """A VM's sockets."""
        return [each for each in self.served.values() if each.attachment.vm == vm]

    def missing_of(self, vm: UUID) -> list[Attachment]:
        """A VM's sockets that are not back yet."""
        return [each for each in self.missing.values() if each.vm == vm]

    def in_use(self, vm: UUID) -> str | None:
        """What shows that a VM may be running; None when nothing does."""
        paths = [str(each.path) for each in (*(each.attachment for each in self.of(vm)), *self.missing_of(vm))]
        if paths:
            return f"{', '.join(paths)} is attached: shut the VM down and detach it"
        last = {each.acceptor: each.attachment.vm for each in self._retiring} | dict(self._stopped)
        if any(acceptor.connections and its == vm for acceptor, its in last.items()):
            return "a request of its varstored is still being carried out"
        return None

    def vms(self) -> frozenset[UUID]:
        """The VMs that have a socket."""
        return frozenset(each.attachment.vm for each in self.served.values())

    def acceptors(self) -> list[Acceptor]:
        """Of every socket, those that are no more and have connections left among them."""
        return [*(each.acceptor for each in (*self._retiring, *self.served.values())), *self._stopped]

    async def attach(self, attachment: Attachment) -> bool:
        """Serve a socket and remember it; True when the very same one is served already.

        Raises `ConfigurationError`, and `RequestRefusedError` where it cannot be now.
        """
        if attachment.path not in self.served:
            with trio.move_on_after(FORMER_SECONDS):
                for each in self._former(attachment):
                    await each.acceptor.emptied()
        async with self._changing:
            there = self.served.get(attachment.path)
            if there is not None:
                if there.attachment != attachment:
                    raise RequestRefusedError(ErrorCode.CONFLICT, f"{attachment.path}: attached otherwise: {there.attachment}")
                if there.acceptor.bound.is_in_place():
                    if not self._is_saved:
                        await self._save_as_served(f"{attachment.path} is attached, but the next start does not know of it")
                    return True
                log.warning("vm=%s %s had been removed: it is made again", attachment.vm, attachment.path)
                self._serve(attachment, self._bind(attachment), fresh=False)
                self._stop(there)
                await self._keep_instead(there)
                return False
            kept = [*(each.attachment for each in self.served.values()), attachment]
            if attachment.interpose:
                await self._interpose(attachment, kept)
            else:
                self._serve(attachment, self._bind(attachment), fresh=True)
                try:
                    await self._save(kept)
                except OSError as error:
                    self._drop(attachment.path)
                    await self._take_back()
                    raise ConfigurationError(f"{self._saved}: {error.strerror}: {attachment.path} is not attached") from None
            await self._kept.keep(self.served[attachment.path].acceptor.bound)
        # There is a way to its toolstack now.
        self._host.wake(attachment.vm)
        log.info("vm=%s attached %s", attachment.vm, attachment.path)
        return False

    async def detach(self, path: Path) -> bool:
        """Stop serving a socket, remove and forget it; False when it was not served. Raises `ConfigurationError`.

        One that was interposed is given back to its guard. So is one that a crash left without an entry in the list.

        Raises `RequestRefusedError` for one whose newest store is not with its guard, be that away or not, or is still under
        way to it, while the VM may be there: its guest would write there next, and what it was told is durable, or what the
        guard has not carried out yet, would be older than that.
        """
        going = self.served.get(path)
        if going is None or self._host.upstreams is None:
            return await self._detach(path, None)
        vm = self._vm(going.attachment.vm)
        if going.attachment.interpose and interpose.has_guard(path, going.acceptor.bound):
            async with vm.at_rest() as is_at_rest:
                return await self._detach(path, vm if is_at_rest else None)
        await vm.flush()
        return await self._detach(path, None)

    async def _detach(self, path: Path, at_rest: Vm | None) -> bool:
        async with self._changing:
            there = self.served.get(path)
            if there is None:
                return await self._detach_what_is_left(path)
            if there.attachment.interpose:
                vm = self._vm(there.attachment.vm)
                has_guard = interpose.has_guard(path, there.acceptor.bound)
                if has_guard and vm is not at_rest:
                    raise _not_at_rest(path)
                # Before the list, so that a crash between the two leaves no path that leads nowhere (see `interpose`).
                interpose.give_back(path, there.acceptor.bound)
                self._drop(path)
                # Its last requests still come here.
                vm.is_given_back = has_guard and not self.of(vm.uuid)
                await self._kept.forget(there.acceptor.bound)
                await self._save_after(path)
            else:
                try:
                    await self._save(each.attachment for other, each in self.served.items() if other != path)
                except OSError as error:
                    await self._take_back()
                    raise ConfigurationError(f"{self._saved}: {error.strerror}: {path} stays attached") from None
                self._drop(path)
                await self._kept.forget(there.acceptor.bound)
        log.info("vm=%s detached %s", there.attachment.vm, path)
        return True

    async def _detach_what_is_left(self, path: Path) -> bool:
        """`_detach` of a path that is not served: it is not back yet, or a crash left it."""
        missing = self.missing.get(path)
        if missing is not None and missing.interpose and not self._vm(missing.vm).is_direct and interpose.has_guard(path, None):
            raise _not_at_rest(path)
        was_left = interpose.is_left(path) and interpose.give_back(path, None)
        self.missing.pop(path, None)
        if missing is not None or not self._is_saved:
            await self._save_after(path)
        if missing is not None:
            log.info("vm=%s detached %s, which was not back yet", missing.vm, path)
        return was_left or missing is not None

    async def _bring_back(self) -> None:
        for attachment in await threads.run_sync(partial(attachments.load_or_put_aside, self._saved)):
            self._return(attachment)
        for each in list(self.served.values()):
            await self._kept.keep(each.acceptor.bound)

    def _return(self, attachment: Attachment) -> bool:
        """Serve a socket of the list again; False where that cannot be. What the system refuses becomes one of `missing`."""
        is_first = self.missing.pop(attachment.path, None) is None
        try:
            bound = self._bind(attachment, returning=True)
        except ConfigurationError as error:
            # A domain's folder goes with it.
            if isinstance(error, RefusedBySystemError) and os.path.lexists(attachment.path.parent):
                self.missing[attachment.path] = attachment
                if is_first:
                    log.warning("vm=%s its socket is not back yet, and is tried again: %s", attachment.vm, error)
            else:
                log.warning("vm=%s its socket does not come back: %s", attachment.vm, error)
            return False
        self._serve(attachment, bound, fresh=False)
        if attachment.interpose:
            # The daemon before may have taken it over just now.
            self._vm(attachment.vm).asks_again = True
        return True

    async def _return_missing(self) -> None:
        """Bring back what the system refused at the start, as soon as it does no more."""
        pause, longest = AGAIN_SECONDS
        while self.missing:
            await trio.sleep(pause)
            pause = min(2 * pause, longest)
            for attachment in list(self.missing.values()):
                async with self._changing:
                    if self.missing.get(attachment.path) is not attachment or not self._return(attachment):
                        continue
                    await self._kept.keep(self.served[attachment.path].acceptor.bound)
                self._host.wake(attachment.vm)
                log.info("vm=%s %s is back", attachment.vm, attachment.path)

    def _bind(self, attachment: Attachment, *, returning: bool = False) -> Bound:
        """Have the attachment's path lead to a socket of ours. Raises `ConfigurationError`."""
        self._confirm_upstream(attachment, returning=returning)
        if returning:
            # One that is interposed has its guard's group and mode.
            access = None if attachment.interpose else Access(attachment.mode, attachment.gid)
            kept = self._kept.take(attachment.path, access)
            if kept is not None:
                return kept
        if not attachment.interpose:
            return listen.bind(attachment.path, mode=attachment.mode, gid=attachment.gid)
        taking = interpose.prepare(attachment.path, self._identities(), returning=returning)
        self._doubt(attachment, taking)
        taking.switch()
        return taking.bound

    def _serve(self, attachment: Attachment, bound: Bound, *, fresh: bool) -> None:
        if self._nursery is None:
            raise AssertionError("the daemon does not run")
        self.missing.pop(attachment.path, None)
        vm = self._vm(attachment.vm)
        vm.is_given_back = False
        if fresh:
            vm.forget()
        served = VmSocket(attachment, vm, fresh=fresh)
        acceptor = Acceptor(
            bound,
            busy=too_many(Socket.VM),
            who=f"vm={vm.uuid}",
            most=VM_CONNECTIONS,
            places=self.places,
            host=self._host,
            nursery=self._nursery,
            make=served.session,
        )
        self.served[attachment.path] = Attached(attachment, acceptor, served)
        if self._host.upstreams is not None:
            self._host.upstreams.set_upstream(attachment.vm, attachment.upstream)
        self._nursery.start_soon(acceptor.run, name=f"socket of vm={vm.uuid}")
        if self._host.toolstack.late_seconds and not (fresh and served.boot_is_left) and not vm.is_known:
            # Its next write may find the toolstack away. A VM that is about to boot reads its store itself.
            self._nursery.start_soon(self._looks.look_at, vm, name=f"look at vm={vm.uuid}")

    async def _interpose(self, attachment: Attachment, kept: list[Attachment]) -> None:
        """Take over a guard's socket, in the order that `interpose` gives. Raises `ConfigurationError`."""
        self._confirm_upstream(attachment)
        for each in self.served.values():
            if each.attachment.calls(attachment.path):
                text = f"{attachment.path}: it is the upstream of {each.attachment.path}, whose calls would come back here"
                raise RequestRefusedError(ErrorCode.CONFLICT, f"{text}: detach that one first")
        if any(each.acceptor.connections for each in self._former(attachment)):
            text = f"{attachment.path}: a request that came before it was detached is not done yet: attach it again in a while"
            raise RequestRefusedError(ErrorCode.BUSY, text)
        taking = interpose.prepare(attachment.path, self._identities())
        try:
            await self._save(kept)
        except BaseException as error:
            taking.abandon()
            if not isinstance(error, OSError):
                raise
            await self._take_back()
            raise ConfigurationError(f"{self._saved}: {error.strerror}: {attachment.path} is not attached") from None
        self._doubt(attachment, taking)
        try:
            taking.switch()
        except ConfigurationError:
            await self._save_after(attachment.path)
            raise
        self._serve(attachment, taking.bound, fresh=True)

    def _doubt(self, attachment: Attachment, taking: interpose.Taking) -> None:
        """Before PATH leads to us: the next daemon does not see who had it."""
        if taking.how is interpose.How.EXCHANGE:
            # The guard had its socket to itself until now.
            self._vm(attachment.vm).doubt()

    def _former(self, attachment: Attachment) -> list[Attached]:
        """Whose last calls go to the guard at this path, which must not become ours under them."""
        return [each for each in self._retiring if attachment.interpose and each.attachment.path == attachment.path]

    async def _watch(self) -> None:
        while True:
            await trio.sleep(WATCH_SECONDS)
            await self.look_at_guards()

    async def look_at_guards(self) -> None:
        """Take over again what guards that were started anew have made anew."""
        for each in list(self.served.values()):
            if each.attachment.interpose and interpose.is_displaced(each.acceptor.bound):
                await self._take_again(each)

    async def _take_again(self, there: Attached) -> None:
        attachment = there.attachment
        async with self._changing:
            if self.served.get(attachment.path) is not there:
                return
            try:
                # Whether its VM has started meanwhile nobody knows: no boot is left (see `BootRead`).
                self._serve(attachment, self._bind(attachment, returning=True), fresh=False)
            except ConfigurationError as error:
                self._complaints.add(f"vm={attachment.vm}: started anew, and its socket is not ours: {error}")
                return
            self._retire(there)
            await self._keep_instead(there)
        # There is a way to its toolstack again.
        self._host.wake(attachment.vm)
        log.info("vm=%s its guard was started anew: %s is taken over again", attachment.vm, attachment.path)

    async def _keep_instead(self, former: Attached) -> None:
        """Have what is served at a path kept, and no longer what was served there before."""
        await self._kept.keep(self.served[former.attachment.path].acceptor.bound)
        await self._kept.forget(former.acceptor.bound)

    def _retire(self, there: Attached) -> None:
        """Let those who have connected to a socket that is no more have what they came for."""
        if self._nursery is None:
            raise AssertionError("the daemon does not run")
        there.acceptor.take_last()
        self._retiring.add(there)
        self._nursery.start_soon(self._retired, there, name=f"former socket of vm={there.attachment.vm}")

    async def _retired(self, there: Attached) -> None:
        await there.acceptor.retire()
        vm = there.attachment.vm
        if not self.of(vm):
            # What its last requests left in the journal: the way to its toolstack goes with the socket.
            await self._vm(vm).flush()
        self._retiring.discard(there)
        self._choose_upstream(vm)

    def _drop(self, path: Path) -> None:
        there = self.served.pop(path)
        if there.attachment.interpose:
            self._retire(there)
        else:
            self._stop(there)
            there.acceptor.bound.unlink()
        self._choose_upstream(there.attachment.vm)

    def _stop(self, there: Attached) -> None:
        there.acceptor.stop()
        self._stopped[there.acceptor] = there.attachment.vm

    def _choose_upstream(self, vm: UUID) -> None:
        if self._host.upstreams is not None:
            # What is under way on a socket that was given back ends where its guard is from now on. A VM that migrates on its
            # host has two sockets for a while, each with its own upstream.
            left: list[Path | None] = [each.attachment.path for each in self._retiring if each.attachment.vm == vm]
            left += [each.attachment.upstream for each in self.served.values() if each.attachment.vm == vm]
            self._host.upstreams.set_upstream(vm, left[-1] if left else None)

    def _identities(self) -> frozenset[tuple[int, int]]:
        """Device and inode of every socket that is served here."""
        bounds = [*self._others, *(each.acceptor.bound for each in self.served.values())]
        return frozenset((bound.device, bound.inode) for bound in bounds)

    def _confirm_upstream(self, attachment: Attachment, *, returning: bool = False) -> None:
        name = self._host.toolstack.name
        if self._host.upstreams is None and attachment.upstream is not None:
            raise ConfigurationError(f"{attachment.path}: upstream: the {name} toolstack has no socket for each VM")
        if self._host.upstreams is not None and attachment.upstream is None:
            raise ConfigurationError(f"{attachment.path}: upstream: the {name} toolstack needs the VM's own socket there")
        # Beside one that is interposed may be ours, until its guard comes; those that come back have been looked at before.
        if not (returning or attachment.interpose) and attachment.leads_to_itself(self._identities()):
            text = f"{attachment.upstream} is served by this daemon itself: the guard's own socket is needed there"
            raise ConfigurationError(f"{attachment.path}: upstream: {text}")

    async def _save(self, kept: Iterable[Attachment]) -> None:
        self._is_saved = False
        listed = self.missing | {each.path: each for each in kept}
        await threads.run_sync(partial(attachments.save, self._saved, tuple(listed.values())))
        self._is_saved = True

    async def _take_back(self) -> None:
        """A list could not be saved. It may be in place all the same, only not durably: it must not say what is not so."""
        with suppress(OSError):
            await self._save(each.attachment for each in self.served.values())

    async def _save_after(self, path: Path) -> None:
        """Save the list once `path` is no longer in it. Raises `ConfigurationError`."""
        await self._save_as_served(f"{path} is not attached, but the next start takes it over: detach it again")

    async def _save_as_served(self, otherwise: str) -> None:
        """Save what is served now. Raises `ConfigurationError`, which says `otherwise`."""
        try:
            await self._save(each.attachment for each in self.served.values())
        except OSError as error:
            raise ConfigurationError(f"{self._saved}: {error.strerror}: {otherwise}") from None


def _not_at_rest(path: Path) -> RequestRefusedError:
    text = f"{path}: the VM's newest store is not with its toolstack yet: detach it again in a while"
    return RequestRefusedError(ErrorCode.TOOLSTACK_UNAVAILABLE, text)
