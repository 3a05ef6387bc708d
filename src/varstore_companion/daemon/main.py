"""The daemon: composes toolstack, rules and sockets, and has the only nurseries."""

import fcntl
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from time import time
from uuid import UUID
from weakref import WeakValueDictionary

import trio

from varstore_companion import __version__
from varstore_companion.daemon import attachments, http_server, journals, listen, toolstacks
from varstore_companion.daemon.acceptor import Acceptor, Places
from varstore_companion.daemon.attachments import Attachment
from varstore_companion.daemon.config import Settings
from varstore_companion.daemon.control import Control
from varstore_companion.daemon.drainer import Drainer
from varstore_companion.daemon.host import Host
from varstore_companion.daemon.listen import Bound
from varstore_companion.daemon.recovery import Recovery
from varstore_companion.daemon.session import RequestRefusedError, too_many
from varstore_companion.daemon.vm import Vm
from varstore_companion.daemon.vm_socket import VmSocket
from varstore_companion.daemon.xapi_endpoint import XapiEndpoint
from varstore_companion.errors import ConfigurationError, ToolstackError
from varstore_companion.files import load_manifest
from varstore_companion.journal.backups import Backups
from varstore_companion.journal.history import History
from varstore_companion.sources import Loaded, load_bodies
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Socket

log = logging.getLogger(__name__)

VM_CONNECTIONS = 8
"""Connections to one VM's socket: its varstored has one, a tool or two beside it."""
CONTROL_CONNECTIONS = 64
XAPI_CONNECTIONS = 64
"""Connections of xapi's clients: each can hold a document of a quarter of a MiB, and keeps its place for two minutes."""
ALL_CONNECTIONS = 4_096
"""Connections to all VMs' sockets together: each can hold a frame of a quarter of a MiB."""
DESCRIPTORS = 16_384
"""What the daemon asks the system for: a socket for each of 1,000 VMs, all connections, and room."""
STOP_SECONDS = 10.0
"""For requests that are being carried out when the daemon is told to stop."""


class Daemon:
    """The daemon's VMs and sockets. `run` serves them; the other methods are what the control socket asks for."""

    def __init__(
        self, host: Host, loaded: Loaded, saved: Path, control: Bound, xapi: tuple[Bound, XapiEndpoint] | None = None
    ) -> None:
        self._host = host
        self._loaded = loaded
        self._saved = saved
        self._control_bound = control
        self._control: Acceptor | None = None
        self._xapi = xapi
        self._xapi_acceptor: Acceptor | None = None
        # As long as a connection of a VM lives, so does the one object that keeps the order of its writes: also when its
        # socket is detached and attached again meanwhile (invariant 9).
        self._vms: WeakValueDictionary[UUID, Vm] = WeakValueDictionary()
        self._sockets: dict[Path, tuple[Attachment, Acceptor]] = {}
        # Those that serve a last request of a connection though their sockets are gone.
        self._stopped: list[tuple[UUID, Acceptor]] = []
        self.recovery = Recovery(host, self.vm, self._in_use)
        self._changing = trio.Lock()
        self._places = Places(ALL_CONNECTIONS)
        self._nursery: trio.Nursery | None = None
        self._drainer: Drainer | None = None
        self._alerts_sent = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Started once every saved socket and the control socket answer."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._host.nursery = nursery
            nursery.start_soon(self._send_alerts, name="alerts")
            await nursery.start(self._host.journal.run, name="journal")
            self._drainer = self._host.drainer = Drainer(self.vm, nursery)
            nursery.start_soon(self._host.history.write_all, name="history")
            nursery.start_soon(self._host.backups.expire, self._host.now(), name="old backups")
            await self._bring_back()
            for entry in self._host.journal.entries():
                self._drainer.deliver(entry.vm)
            control = Control(self, _owners())
            self._control = Acceptor(
                self._control_bound,
                busy=too_many(Socket.CONTROL),
                who="control",
                most=CONTROL_CONNECTIONS,
                places=Places(CONTROL_CONNECTIONS),
                host=self._host,
                nursery=nursery,
                make=control.session,
            )
            nursery.start_soon(self._control.run, name="control socket")
            if self._xapi is not None:
                self._xapi_acceptor = self._serve_xapi(*self._xapi, nursery)
            log.info("ready: %d sockets, control at %s", len(self._sockets), self._control_bound.path)
            task_status.started()
            await trio.sleep_forever()

    async def stop(self) -> None:
        """Accept nothing more; wait until each connection has finished its request, and alerts and histories are out."""
        acceptors = list(self._acceptors())
        for acceptor in acceptors:
            acceptor.stop()
        for acceptor in acceptors:
            await acceptor.emptied()
        self._host.end_alerts()
        await self._host.history.finish()
        await self._alerts_sent.wait()

    @property
    def connections(self) -> int:
        """Connections that are being served."""
        return sum(acceptor.connections for acceptor in self._acceptors())

    def _acceptors(self) -> Iterator[Acceptor]:
        for acceptor in (self._control, self._xapi_acceptor):
            if acceptor is not None:
                yield acceptor
        for _, acceptor in self._sockets.values():
            yield acceptor

    # What the control socket asks for

    def vm(self, uuid: UUID) -> Vm:
        """The daemon's side of a VM, remembered as long as somebody uses it."""
        return self._vms.setdefault(uuid, Vm(uuid, self._host))

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
                self._serve(attachment, fresh=False)
                self._stop(attachment.vm, there[1])
                return False
            self._serve(attachment, fresh=True)
            try:
                await self._save(attachment for attachment, _ in self._sockets.values())
            except OSError as error:
                self._drop(attachment.path)
                raise ConfigurationError(f"{self._saved}: {error.strerror}: {attachment.path} is not attached") from None
        if self._drainer is not None:
            self._drainer.wake(attachment.vm)
        log.info("vm=%s attached %s", attachment.vm, attachment.path)
        return False

    async def detach(self, path: Path) -> bool:
        """Stop serving a socket, remove and forget it; False when it was not served. Raises `ConfigurationError`."""
        there = self._sockets.get(path)
        if there is not None and self._host.upstreams is not None:
            await self.vm(there[0].vm).flush()
        async with self._changing:
            if path not in self._sockets:
                return False
            try:
                await self._save(attachment for other, (attachment, _) in self._sockets.items() if other != path)
            except OSError as error:
                raise ConfigurationError(f"{self._saved}: {error.strerror}: {path} stays attached") from None
            attachment = self._drop(path)
        log.info("vm=%s detached %s", attachment.vm, path)
        return True

    def listed(self) -> list[dict[str, object]]:
        """Every attached socket with what is known of its VM, by path."""
        return [
            attachment.describe() | {"connections": acceptor.connections} | _describe_vm(self._vms[attachment.vm])
            for _, (attachment, acceptor) in sorted(self._sockets.items(), key=lambda item: os.fsencode(item[0]))
        ]

    async def status(self, vm: UUID | None) -> dict[str, object]:
        """The daemon's totals, or what is known of one VM after a look at the toolstack."""
        if vm is not None:
            known = self.vm(vm)
            sockets = [os.fspath(path) for path, (attachment, _) in self._sockets.items() if attachment.vm == vm]
            try:
                record = await known.read()
            except ToolstackError as error:
                if not sockets:
                    raise
                return {"vm": str(vm), "sockets": sockets, **_describe_vm(known), "error": str(error)}
            # Without the field nobody can have marked the VM: an old toolstack.
            updates = {"updates_at_boot": record.state is not None}
            return {"vm": str(vm), "sockets": sockets, **_describe_vm(known), **updates, "error": None}
        manifest = self._host.manifest
        return {
            "version": __version__,
            **journals.describe(self._host.journal, self._drainer),
            "toolstack": self._host.toolstack.name,
            "manifest": f"{manifest.name} {manifest.revision}",
            "certificates": {
                certificate.name: self._loaded.origins.get(certificate.sha256)
                for rule in manifest.rules
                for certificate in rule.required
            },
            "attached": len(self._sockets),
            "connections": self.connections,
            **self._host.stats.describe(),
        }

    # Sockets

    async def _send_alerts(self) -> None:
        await self._host.send_alerts()
        self._alerts_sent.set()

    async def _bring_back(self) -> None:
        try:
            saved = await trio.to_thread.run_sync(attachments.load, self._saved)
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

    def _serve(self, attachment: Attachment, *, fresh: bool) -> None:
        if self._nursery is None:
            raise AssertionError("the daemon does not run")
        self._confirm_upstream(attachment)
        bound = listen.bind(attachment.path, mode=attachment.mode, gid=attachment.gid)
        vm = self.vm(attachment.vm)
        acceptor = Acceptor(
            bound,
            busy=too_many(Socket.VM),
            who=f"vm={vm.uuid}",
            most=VM_CONNECTIONS,
            places=self._places,
            host=self._host,
            nursery=self._nursery,
            make=VmSocket(attachment, vm, fresh=fresh).session,
        )
        self._sockets[attachment.path] = (attachment, acceptor)
        if self._host.upstreams is not None:
            self._host.upstreams.set_upstream(attachment.vm, attachment.upstream)
        self._nursery.start_soon(acceptor.run, name=f"socket of vm={vm.uuid}")

    def _serve_xapi(self, bound: Bound, endpoint: XapiEndpoint, nursery: trio.Nursery) -> Acceptor:
        acceptor = Acceptor(
            bound,
            busy=http_server.TOO_MANY,
            who="xapi socket",
            most=XAPI_CONNECTIONS,
            places=Places(XAPI_CONNECTIONS),
            host=self._host,
            nursery=nursery,
            make=endpoint.session,
        )
        nursery.start_soon(acceptor.run, name="xapi socket")
        log.info("xapi's clients are answered at %s", bound.path)
        return acceptor

    def _drop(self, path: Path) -> Attachment:
        attachment, acceptor = self._sockets.pop(path)
        self._stop(attachment.vm, acceptor)
        acceptor.bound.unlink()
        if self._host.upstreams is not None:
            # A VM that migrates on its host has two sockets for a while, each with its own upstream.
            left = [other.upstream for other, _ in self._sockets.values() if other.vm == attachment.vm]
            self._host.upstreams.set_upstream(attachment.vm, left[-1] if left else None)
        return attachment

    def _stop(self, vm: UUID, acceptor: Acceptor) -> None:
        acceptor.stop()
        self._stopped = [each for each in (*self._stopped, (vm, acceptor)) if each[1].connections]

    def _in_use(self, vm: UUID) -> str | None:
        """What shows that a VM may be running; None when nothing does."""
        paths = [os.fspath(path) for path, (attachment, _) in self._sockets.items() if attachment.vm == vm]
        if paths:
            return f"{', '.join(paths)} is attached: shut the VM down and detach it"
        if any(each == vm and acceptor.connections for each, acceptor in self._stopped):
            return "a request of its varstored is still being carried out"
        return None

    def _confirm_upstream(self, attachment: Attachment) -> None:
        name = self._host.toolstack.name
        if self._host.upstreams is None and attachment.upstream is not None:
            raise ConfigurationError(f"{attachment.path}: upstream: the {name} toolstack has no socket for each VM")
        if self._host.upstreams is not None and attachment.upstream is None:
            raise ConfigurationError(f"{attachment.path}: upstream: the {name} toolstack needs the VM's own socket there")

    async def _save(self, kept: Iterable[Attachment]) -> None:
        await trio.to_thread.run_sync(attachments.save, self._saved, tuple(kept))


def _describe_vm(vm: Vm) -> dict[str, object]:
    last = vm.last_update
    return {
        "delivery": vm.mode.value,
        "report": vm.report,
        "field": vm.field,
        "last_verdict": vm.last_verdict,
        "last_update": None if last is None else {"at": last.at, "outcome": last.outcome.value, "detail": last.detail},
    }


def _owners() -> frozenset[int]:
    """The users that may ask for everything: root, and the daemon's own."""
    return frozenset({0, os.geteuid()})


@contextmanager
def _listening(path: Path) -> Iterator[Bound]:
    """Listen on a socket for the owners until the end. Raises `ConfigurationError`."""
    bound = listen.bind(path, mode=0o600)
    try:
        yield bound
    finally:
        bound.unlink()
        bound.socket.close()


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Daemon]:
    """Compose a daemon from its settings; it holds the state folder's lock until the end.

    Raises `ConfigurationError`.
    """
    with _locked(settings.state_dir):
        manifest = load_manifest(settings.manifest)
        loaded = load_bodies(manifest, auth_folder=settings.auth_dir, folder=settings.certificates)
        for problem in loaded.problems:
            log.warning("certificate file %s", problem)
        for certificate in {each for rule in manifest.rules for each in rule.required}:
            if certificate.sha256 not in loaded.bodies:
                log.warning("no source has the body of %s: updates that need it are refused", certificate.subject)
        async with toolstacks.opened(settings, manifest) as chosen:
            backups, history = Backups(settings.state_dir / "backups"), History(settings.state_dir / "history")
            journal = await journals.opened(settings.state_dir / "journal")
            ledger = journals.opened_ledger(settings.state_dir / "ledger") if chosen.toolstack.late_seconds else None
            host = Host(
                chosen.toolstack,
                manifest,
                loaded.bodies,
                backups,
                history,
                journal,
                time,
                settings.headroom,
                chosen.upstreams,
                ledger=ledger,
            )
            _make_folder(settings.control.parent, mode=0o755)
            with ExitStack() as sockets:
                control = sockets.enter_context(_listening(settings.control))
                xapi = None
                if settings.xapi_socket is not None and chosen.calls is not None:
                    bound = sockets.enter_context(_listening(settings.xapi_socket))
                    xapi = bound, XapiEndpoint(chosen.calls, _owners())
                yield Daemon(host, loaded, settings.state_dir / "attached.json", control, xapi)


async def serve(settings: Settings) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises `ConfigurationError`, `OSError`."""
    _raise_descriptor_limit()
    reasons: list[Exception] = []
    try:
        await _serve(settings)
    except* (ConfigurationError, OSError) as group:
        # The nurseries wrap what they let out, and a caller has use for the reason alone.
        reasons = _leaves(group)
    if reasons:
        raise reasons[0]


def _leaves(group: ExceptionGroup[Exception]) -> list[Exception]:
    return [leaf for each in group.exceptions for leaf in (_leaves(each) if isinstance(each, ExceptionGroup) else [each])]


async def _serve(settings: Settings) -> None:
    async with opened(settings) as daemon, trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await nursery.start(daemon.run, name="daemon")
            async for number in signals:
                log.info("%s: stopping", signal.Signals(number).name)
                break
            with trio.move_on_after(STOP_SECONDS):
                await daemon.stop()
            nursery.cancel_scope.cancel()
    log.info("stopped")


@contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """Hold the state folder, which is made when it is missing. The lock goes with the process, however it ends."""
    _make_folder(state_dir, mode=0o700)
    try:
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{state_dir}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"{state_dir}: another daemon runs on this state folder") from None
        yield
    finally:
        os.close(lock)


def _make_folder(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
