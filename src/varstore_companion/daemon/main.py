"""The daemon: composes toolstack, rules and sockets, and has the only nurseries."""

import faulthandler
import fcntl
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from time import time
from uuid import UUID
from weakref import WeakValueDictionary

import trio

from varstore_companion import __version__
from varstore_companion.daemon import http_server, listen, toolstacks
from varstore_companion.daemon.acceptor import Acceptor, Places
from varstore_companion.daemon.attachments import Attachment
from varstore_companion.daemon.config import Settings
from varstore_companion.daemon.control import Control
from varstore_companion.daemon.host import Host
from varstore_companion.daemon.kept import Kept
from varstore_companion.daemon.listen import Bound
from varstore_companion.daemon.session import too_many
from varstore_companion.daemon.sockets import Sockets, describe_vm
from varstore_companion.daemon.systemd import Service, passed
from varstore_companion.daemon.vm import Vm
from varstore_companion.daemon.watch import Stuck, Watched, look_after, nothing_stuck, status_line
from varstore_companion.daemon.xapi_endpoint import XapiEndpoint
from varstore_companion.errors import ConfigurationError, ToolstackError
from varstore_companion.files import load_manifest
from varstore_companion.journal.backups import Backups
from varstore_companion.sources import Loaded, load_bodies
from varstore_companion.wire.messages import Socket

log = logging.getLogger(__name__)

CONTROL_CONNECTIONS = 64
XAPI_CONNECTIONS = 64
"""Connections of xapi's clients: each can hold a document of a quarter of a MiB, and keeps its place for two minutes."""
DESCRIPTORS = 16_384
"""What the daemon asks the system for: a socket for each of 1,000 VMs, all connections, and room."""
STOP_SECONDS = 10.0
"""For requests that are being carried out when the daemon is told to stop."""


class Daemon:
    """The daemon's VMs and sockets. `run` serves them; the other methods are what the control socket asks for."""

    def __init__(
        self,
        host: Host,
        loaded: Loaded,
        saved: Path,
        control: Bound,
        xapi: tuple[Bound, XapiEndpoint] | None = None,
        *,
        kept: Kept | None = None,
        stuck: Stuck = nothing_stuck,
    ) -> None:
        self._host = host
        self._loaded = loaded
        self._control_bound = control
        self._control: Acceptor | None = None
        self._xapi = xapi
        self._xapi_acceptor: Acceptor | None = None
        # As long as a connection of a VM lives, so does the one object that keeps the order of its writes: also when its
        # socket is detached and attached again meanwhile (invariant 9).
        self._vms: WeakValueDictionary[UUID, Vm] = WeakValueDictionary()
        self._kept = kept or Kept()
        self.stuck = stuck
        self._sockets = Sockets(host, saved, self.vm, self._kept)
        self._alerts_sent = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Started once every saved socket and the control socket answer."""
        async with trio.open_nursery() as nursery:
            self._host.nursery = nursery
            nursery.start_soon(self._send_alerts, name="alerts")
            await self._sockets.bring_back()
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
                await self._kept.keep(self._xapi[0])
            await self._kept.keep(self._control_bound)
            await self._kept.close_rest()
            log.info("ready: %d sockets, control at %s", len(self._sockets), self._control_bound.path)
            task_status.started()
            await trio.sleep_forever()

    async def stop(self) -> None:
        """Accept nothing more; wait until each connection has finished its request and the alerts have been sent."""
        acceptors = list(self._acceptors())
        for acceptor in acceptors:
            acceptor.stop()
        for acceptor in acceptors:
            await acceptor.emptied()
        self._host.end_alerts()
        await self._alerts_sent.wait()

    @property
    def status_line(self) -> str:
        """How the daemon does, in one line."""
        return status_line(len(self._sockets), self.connections, self._host)

    @property
    def connections(self) -> int:
        """Connections that are being served."""
        return sum(acceptor.connections for acceptor in self._acceptors())

    def _acceptors(self) -> Iterator[Acceptor]:
        for acceptor in (self._control, self._xapi_acceptor):
            if acceptor is not None:
                yield acceptor
        yield from self._sockets.acceptors()

    # What the control socket asks for

    def vm(self, uuid: UUID) -> Vm:
        """The daemon's side of a VM, remembered as long as somebody uses it."""
        return self._vms.setdefault(uuid, Vm(uuid, self._host))

    async def attach(self, attachment: Attachment) -> bool:
        """See `Sockets.attach`."""
        return await self._sockets.attach(attachment)

    async def detach(self, path: Path) -> bool:
        """See `Sockets.detach`."""
        return await self._sockets.detach(path)

    def listed(self) -> list[dict[str, object]]:
        """See `Sockets.listed`."""
        return self._sockets.listed()

    async def status(self, vm: UUID | None) -> dict[str, object]:
        """The daemon's totals, or what is known of one VM after a look at the toolstack."""
        if vm is not None:
            known = self.vm(vm)
            sockets = self._sockets.of(vm)
            try:
                record = await known.read()
            except ToolstackError as error:
                if not sockets:
                    raise
                return {"vm": str(vm), "sockets": sockets, **describe_vm(known), "error": str(error)}
            # Without the field nobody can have marked the VM: an old toolstack.
            updates = {"updates_at_boot": record.state is not None}
            return {"vm": str(vm), "sockets": sockets, **describe_vm(known), **updates, "error": None}
        manifest = self._host.manifest
        return {
            "version": __version__,
            "mode": "direct",
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


def _owners() -> frozenset[int]:
    """The users that may ask for everything: root, and the daemon's own."""
    return frozenset({0, os.geteuid()})


@contextmanager
def _listening(path: Path, kept: Kept) -> Iterator[Bound]:
    """Listen on a socket for the owners until the end. Raises `ConfigurationError`."""
    bound = kept.take_activated(path) or kept.take(path, mode=0o600) or listen.bind(path, mode=0o600)
    try:
        yield bound
    finally:
        if not kept.holds(bound):
            bound.unlink()
        bound.socket.close()


@asynccontextmanager
async def opened(settings: Settings, kept: Kept | None = None) -> AsyncIterator[Daemon]:
    """Compose a daemon from its settings; it holds the state folder's lock until the end. `kept`: sockets of the last one.

    Raises `ConfigurationError`.
    """
    kept = kept or Kept()
    with _locked(settings.state_dir):
        manifest = load_manifest(settings.manifest)
        loaded = load_bodies(manifest, auth_folder=settings.auth_dir, folder=settings.certificates)
        for problem in loaded.problems:
            log.warning("certificate file %s", problem)
        for certificate in {each for rule in manifest.rules for each in rule.required}:
            if certificate.sha256 not in loaded.bodies:
                log.warning("no source has the body of %s: updates that need it are refused", certificate.subject)
        async with toolstacks.opened(settings, manifest) as chosen:
            backups = Backups(settings.state_dir / "backups")
            watched = Watched(chosen.toolstack)
            host = Host(watched, manifest, loaded.bodies, backups, time, settings.headroom, chosen.upstreams)
            _make_folder(settings.control.parent, mode=0o755)
            with ExitStack() as sockets:
                control = sockets.enter_context(_listening(settings.control, kept))
                xapi = None
                if settings.xapi_socket is not None and chosen.calls is not None:
                    bound = sockets.enter_context(_listening(settings.xapi_socket, kept))
                    xapi = bound, XapiEndpoint(chosen.calls, _owners())
                yield Daemon(host, loaded, settings.state_dir / "attached.json", control, xapi, kept=kept, stuck=watched.stuck)


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
    service = Service.from_environment(os.environ)
    if service.watchdog is not None:
        # Where a daemon stands still that the watchdog ends (SIGABRT) is in its log.
        faulthandler.enable()
    kept = Kept(service, passed(os.environ))
    async with opened(settings, kept) as daemon, trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await nursery.start(daemon.run, name="daemon")
            await service.ready(daemon.status_line)
            if service.has_manager:
                nursery.start_soon(look_after, service, daemon, name="news for systemd")
            async for number in signals:
                log.info("%s: stopping", signal.Signals(number).name)
                break
            await service.stopping(f"stopping: {daemon.connections} connections finish their requests")
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
