"""The daemon: composes toolstack, rules and sockets, and has the only nurseries."""

import faulthandler
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from time import time
from uuid import UUID
from weakref import WeakValueDictionary

import trio

from varstore_companion import __version__
from varstore_companion.daemon import foresee, http_server, journals, listen, metrics, process, rules, toolstacks
from varstore_companion.daemon.acceptor import Acceptor, Places
from varstore_companion.daemon.attachments import Attachment
from varstore_companion.daemon.config import Settings, Source
from varstore_companion.daemon.control import Control
from varstore_companion.daemon.drainer import Drainer
from varstore_companion.daemon.host import Host
from varstore_companion.daemon.kept import Kept
from varstore_companion.daemon.limits import Gate
from varstore_companion.daemon.listen import Access, Bound
from varstore_companion.daemon.measured import MeasuredToolstack
from varstore_companion.daemon.metrics import Known
from varstore_companion.daemon.recovery import Recovery
from varstore_companion.daemon.reload import Reloader
from varstore_companion.daemon.rules import Rules
from varstore_companion.daemon.session import RequestRefusedError, too_many
from varstore_companion.daemon.sockets import Sockets
from varstore_companion.daemon.staging import Staging
from varstore_companion.daemon.stats import Stats
from varstore_companion.daemon.systemd import Service, passed
from varstore_companion.daemon.vm import Vm
from varstore_companion.daemon.watch import look_after, status_line, stuck
from varstore_companion.daemon.xapi_endpoint import XapiEndpoint
from varstore_companion.efi.names import printable
from varstore_companion.errors import ConfigurationError, ToolstackError
from varstore_companion.journal.backups import Backups
from varstore_companion.journal.history import History
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.messages import Socket
from varstore_companion.wire.observing import UpdatesAction

log = logging.getLogger(__name__)

CONTROL_CONNECTIONS = 64
XAPI_CONNECTIONS = 64
"""Connections of xapi's clients: each can hold a document of a quarter of a MiB, and keeps its place for two minutes."""
STOP_SECONDS = 10.0
"""For requests that are being carried out when the daemon is told to stop."""
LAST_SECONDS = 6.0
"""For alerts and histories after that. Time of their own: one VM that does not take its answers uses up the other."""


class Daemon:
    """The daemon's VMs and sockets. `run` serves them; the other methods are what the control socket asks for."""

    def __init__(
        self,
        host: Host,
        reloader: Reloader,
        saved: Path,
        control: Bound,
        xapi: tuple[Bound, XapiEndpoint] | None = None,
        *,
        kept: Kept | None = None,
    ) -> None:
        self._host = host
        self._started_at = host.now()
        self.reloader = reloader
        reloader.followers.append(self._forget_reports)
        self._control_bound = control
        self._control: Acceptor | None = None
        self._xapi = xapi
        self._xapi_acceptor: Acceptor | None = None
        # As long as a connection of a VM lives, so does the one object that keeps the order of its writes: also when its
        # socket is detached and attached again meanwhile (invariant 9).
        self._vms: WeakValueDictionary[UUID, Vm] = WeakValueDictionary()
        self._kept = kept or Kept()
        self._sockets = Sockets(host, saved, self.vm, [control, *([] if xapi is None else [xapi[0]])], self._kept)
        host.alerting.attached = self._sockets.vms
        self.recovery = Recovery(host, self.vm, self._sockets.in_use)
        self._drainer: Drainer | None = None
        self._alerts_sent = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Started once every saved socket and the control socket answer."""
        async with trio.open_nursery() as nursery:
            self._host.nursery = nursery
            nursery.start_soon(self._send_alerts, name="alerts")
            await nursery.start(self._host.journal.run, name="journal")
            self._drainer = self._host.drainer = Drainer(self.vm, nursery)
            nursery.start_soon(self._host.history.write_all, name="history")
            nursery.start_soon(self._host.backups.expire, self._host.now(), name="old backups")
            await self._sockets.start(nursery)
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
                await self._kept.keep(self._xapi[0])
            await self._kept.keep(self._control_bound)
            await self._kept.close_rest()
            log.info("ready: %d sockets, control at %s", len(self._sockets.served), self._control_bound.path)
            task_status.started()
            await trio.sleep_forever()

    async def stop(self) -> None:
        """Accept nothing more; wait until each connection has finished its request, and alerts and histories are out.

        For a request `STOP_SECONDS` at most are waited.
        """
        acceptors = list(self._acceptors())
        for acceptor in acceptors:
            acceptor.stop()
        with trio.move_on_after(STOP_SECONDS):
            for acceptor in acceptors:
                await acceptor.emptied()
        self._host.end_alerts()
        await self._host.history.finish()
        await self._alerts_sent.wait()

    @property
    def status_line(self) -> str:
        """How the daemon does, in one line."""
        mode = journals.describe(self._host.journal, self._drainer, self._sockets.vms())["mode"]
        return status_line(mode, len(self._sockets.served), self.connections, self._host)

    def stuck(self) -> str | None:
        """A call of the toolstack that does not end, in words for the log."""
        return stuck(self._host.toolstack) if isinstance(self._host.toolstack, MeasuredToolstack) else None

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
        vm = self._vms.get(uuid)
        if vm is None:
            vm = self._vms[uuid] = Vm(uuid, self._host)
        return vm

    async def attach(self, attachment: Attachment) -> bool:
        """See `Sockets.attach`."""
        return await self._sockets.attach(attachment)

    async def detach(self, path: Path) -> bool:
        """See `Sockets.detach`."""
        return await self._sockets.detach(path)

    def listed(self) -> list[dict[str, object]]:
        """Every attached socket with what is known of its VM, by path."""
        return [
            {
                **each.describe(),
                **_describe_vm(self._vms[each.attachment.vm]),
                "updates_at_boot": self._host.toolstack.has_field(each.attachment.vm),
            }
            for _, each in sorted(self._sockets.served.items(), key=lambda item: os.fsencode(item[0]))
        ]

    async def status(self, vm: UUID | None) -> dict[str, object]:
        """The daemon's totals, or what is known of one VM after a look at the toolstack."""
        if vm is not None:
            known = self.vm(vm)
            served = self._sockets.of(vm)
            reason = None
            try:
                await known.read()
            except ToolstackError as error:
                # A VM whose store waits is known, whatever the toolstack says.
                if not served and known.is_direct:
                    raise
                reason = str(error)
            return {
                "vm": str(vm),
                "sockets": [os.fspath(each.attachment.path) for each in served],
                "missing": [os.fspath(each.path) for each in self._sockets.missing_of(vm)],
                "boot_left": [os.fspath(each.attachment.path) for each in served if each.socket.boot_is_left],
                **_describe_vm(known),
                # Without the field nobody can have marked the VM: an old toolstack.
                "updates_at_boot": self._host.toolstack.has_field(vm),
                "error": reason,
                "verdicts": known.verdicts.describe(),
            }
        return {
            "version": __version__,
            "started_at": self._started_at,
            **journals.describe(self._host.journal, self._drainer, self._sockets.vms()),
            "toolstack": self._host.toolstack.name,
            "manifest": self._host.rules.name,
            "certificates": self._host.rules.origins(),
            **self.reloader.describe(),
            "updates_at_boot": self._host.staging.describe(),
            "attached": len(self._sockets.served),
            "missing": len(self._sockets.missing),
            "without_updates_at_boot": sum(self._host.toolstack.has_field(vm) is False for vm in self._sockets.vms()),
            "connections": self.connections,
            **self._host.stats.describe(),
        }

    def metrics(self) -> list[dict[str, object]]:
        """Everything that is counted and timed, as `metrics.describe`."""
        known = Known(
            version=__version__,
            started_at=self._started_at,
            attached=len(self._sockets.served),
            missing=len(self._sockets.missing),
            connections=self.connections,
            vms=[self._vms[vm] for vm in self._sockets.vms()],
            reloader=self.reloader,
        )
        return metrics.describe(self._host, known)

    async def set_updates(self, action: UpdatesAction | None, reason: str | None) -> dict[str, object]:
        """Pause updates at boot, resume them, or only say what is in force."""
        staging = self._host.staging
        if action is UpdatesAction.PAUSE:
            staging.pause(printable(reason or "an operator paused them"))
        elif action is UpdatesAction.RESUME:
            staging.resume()
        if action is not None:
            try:
                await staging.save()
            except OSError as error:
                text = f"in force now, but the next daemon will not know of it: {error}"
                raise RequestRefusedError(ErrorCode.INTERNAL, text) from None
        return staging.describe()

    def _forget_reports(self, _rules: Rules) -> None:
        # Made with other rules; made anew at each VM's next boot or look.
        for vm in self._vms.values():
            vm.forget_report()

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


def _describe_vm(vm: Vm) -> dict[str, object]:
    last = vm.last_update
    return {
        "delivery": vm.mode.value,
        "report": vm.report,
        "field": vm.field,
        "last_verdict": vm.last_verdict,
        "last_update": None if last is None else {"at": last.at, "outcome": last.outcome.value, "detail": last.detail},
        "certcheck_saved": vm.certcheck_saved,
    }


def _owners() -> frozenset[int]:
    """The users that may ask for everything: root, and the daemon's own."""
    return frozenset({0, os.geteuid()})


@contextmanager
def _listening(path: Path, kept: Kept) -> Iterator[Bound]:
    """Listen on a socket for the owners until the end. Raises `ConfigurationError`."""
    bound = kept.take_activated(path) or kept.take(path, Access(0o600)) or listen.bind(path, mode=0o600)
    try:
        yield bound
    finally:
        if not kept.holds(bound):
            bound.unlink()
        bound.socket.close()


@asynccontextmanager
async def opened(settings: Settings, source: Source | None = None, kept: Kept | None = None) -> AsyncIterator[Daemon]:
    """Compose a daemon from its settings; it holds the state folder's lock until the end.

    `source`: where a reload reads the settings again; without it they stay as they are. `kept`: sockets of the last daemon.
    Raises `ConfigurationError`.
    """
    kept = kept or Kept()
    source = source or Source.fixed(settings)
    foresee.confirm(settings, source.error)
    with process.locked(settings.state_dir):
        found = rules.load(settings, source.error)
        for warning in found.warnings():
            log.warning("%s", warning)
        async with toolstacks.opened(settings, found.manifest) as chosen:
            stats = Stats()
            calls = Gate(lambda: host.rules.limits.calls_at_once)
            toolstack = MeasuredToolstack(chosen.toolstack, stats, calls)
            staging = Staging(settings.state_dir / "updates-paused.json", lambda: host.rules.limits, time)
            backups, history = Backups(settings.state_dir / "backups"), History(settings.state_dir / "history")
            journal = await journals.opened(settings.state_dir / "journal")
            ledger = journals.opened_ledger(settings.state_dir / "ledger") if toolstack.late_seconds else None
            host = Host(
                toolstack, found, backups, history, journal, staging, time, chosen.upstreams, ledger=ledger, stats=stats
            )
            reloader = Reloader(host, source, settings)
            if chosen.derive is not None:
                reloader.followers.append(chosen.derive.follow)
            process.make_folder(settings.control.parent, mode=0o755)
            with ExitStack() as sockets:
                control = sockets.enter_context(_listening(settings.control, kept))
                xapi = None
                if settings.xapi_socket is not None and chosen.calls is not None:
                    bound = sockets.enter_context(_listening(settings.xapi_socket, kept))
                    xapi = bound, XapiEndpoint(chosen.calls, _owners())
                yield Daemon(host, reloader, settings.state_dir / "attached.json", control, xapi, kept=kept)


async def serve(settings: Settings, source: Source) -> None:
    """Run the daemon until SIGTERM or SIGINT; at SIGHUP `source` is read again. Raises `ConfigurationError`, `OSError`."""
    process.raise_descriptor_limit()
    reasons: list[Exception] = []
    try:
        await _serve(settings, source)
    except* (ConfigurationError, OSError) as group:
        # The nurseries wrap what they let out, and a caller has use for the reason alone.
        reasons = _leaves(group)
    if reasons:
        raise reasons[0]


def _leaves(group: ExceptionGroup[Exception]) -> list[Exception]:
    return [leaf for each in group.exceptions for leaf in (_leaves(each) if isinstance(each, ExceptionGroup) else [each])]


async def _reload(service: Service, reloader: Reloader) -> None:
    async with service.reloading():
        await reloader.reload_soon()


async def _serve(settings: Settings, source: Source) -> None:
    # While it starts and stops, too: a terminal that goes away, or a reload too early, must not end it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    service = Service.from_environment(os.environ)
    if service.watchdog is not None:
        # Where a daemon stands still that the watchdog ends (SIGABRT) is in its log.
        faulthandler.enable()
    kept = Kept(service, passed(os.environ))
    async with opened(settings, source, kept) as daemon, trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            await nursery.start(daemon.run, name="daemon")
            process.spare_what_stands()
            await service.ready(daemon.status_line)
            if service.has_manager:
                nursery.start_soon(look_after, service, daemon, name="news for systemd")
            async for number in signals:
                if number == signal.SIGHUP:
                    nursery.start_soon(_reload, service, daemon.reloader, name="reload")
                    continue
                log.info("%s: stopping", signal.Signals(number).name)
                break
            await service.stopping(f"stopping: {daemon.connections} connections finish their requests")
            with trio.move_on_after(STOP_SECONDS + LAST_SECONDS):
                await daemon.stop()
            nursery.cancel_scope.cancel()
    log.info("stopped")
