"""What the control socket answers: root's requests about all VMs."""

import json
import logging
import socket as stdlib_socket
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Protocol
from uuid import UUID

from varstore_companion.daemon import log as logs
from varstore_companion.daemon.attachments import DEFAULT_MODE, Attachment, interposed
from varstore_companion.daemon.complaints import Complaints
from varstore_companion.daemon.recovery import Recovery
from varstore_companion.daemon.reload import Reloader
from varstore_companion.daemon.session import RequestRefusedError, Session, welcome
from varstore_companion.daemon.vm import Vm
from varstore_companion.trust.describe import describe_plan
from varstore_companion.unix_stream import UnixStream
from varstore_companion.wire import messages, observing
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.limits import MAX_JSON, MAX_LIST
from varstore_companion.wire.messages import AnswerMessage, RequestMessage, Socket

log = logging.getLogger(__name__)

_UCRED = struct.Struct("=iII")
"""Linux' struct ucred: pid, uid, gid."""


class Operations(Protocol):
    """What the daemon does for the control socket."""

    async def attach(self, attachment: Attachment) -> bool:
        """Serve a socket; True when it was served already."""

    async def detach(self, path: Path) -> bool:
        """Stop serving a socket and remove it; False when it was not served."""

    def listed(self) -> list[dict[str, object]]:
        """Every attached socket with what is known of its VM, by path."""

    async def status(self, vm: UUID | None) -> dict[str, object]:
        """The daemon's totals, or what is known of one VM."""

    def metrics(self) -> list[dict[str, object]]:
        """Everything that is counted and timed."""

    async def set_updates(self, action: observing.UpdatesAction | None, reason: str | None) -> dict[str, object]:
        """Pause updates at boot, resume them, or only say what is in force."""

    @property
    def reloader(self) -> Reloader:
        """What reads settings, manifest and certificates again."""

    def vm(self, uuid: UUID) -> Vm:
        """The daemon's side of a VM, attached or not."""

    @property
    def recovery(self) -> Recovery:
        """Backups, histories and restores."""


def peer_uid(stream: UnixStream) -> int:
    """The user id of the process at the other end of a Unix socket, as the kernel says (SO_PEERCRED)."""
    credentials = stream.socket.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[1])


class Control:
    """The control socket. `owners`: the users that may use it, whatever the file's mode says."""

    def __init__(self, operations: Operations, owners: frozenset[int]) -> None:
        self._operations = operations
        self._owners = owners

    def session(self, stream: UnixStream) -> Session:
        """The session of one connection."""
        uid = peer_uid(stream)

        async def greet(_hello: RequestMessage) -> AnswerMessage:
            if uid not in self._owners:
                raise RequestRefusedError(ErrorCode.NOT_ALLOWED, f"user id {uid} may not use the control socket")
            return await welcome(_hello)

        return Session(stream, Socket.CONTROL, Complaints(f"control uid={uid}", log), greet=greet, handle=self._handle)

    async def _handle(self, request: RequestMessage) -> AnswerMessage:
        operations = self._operations
        match request:
            case messages.Ping(data=data):
                return messages.PingAnswer(data)
            case messages.Attach():
                return messages.AttachAnswer(await operations.attach(_attachment(request)))
            case messages.Detach(path=path):
                return messages.DetachAnswer(not await operations.detach(_path(path)))
            case messages.List(after=after, limit=limit):
                return _page(operations.listed(), after, limit)
            case messages.Status(vm=vm):
                return messages.StatusAnswer(json.dumps(await operations.status(vm)))
            case messages.Mark(vm=uuid, mark=mark):
                return messages.MarkAnswer(await operations.vm(uuid).mark(mark=mark))
            case messages.Plan(vm=uuid):
                plan = await operations.vm(uuid).plan()
                if plan is None:
                    raise RequestRefusedError(ErrorCode.INVALID_ARGUMENT, f"VM {uuid} has no store yet: it has not booted")
                return messages.PlanAnswer(json.dumps(describe_plan(plan)))
            case messages.Restore() | messages.Backups() | messages.History():
                return await operations.recovery.answer(request)
            case observing.Stats():
                return observing.StatsAnswer(json.dumps({"metrics": operations.metrics()}))
            case observing.Log(level=level, logger=logger):
                if level is not None:
                    logs.set_level(logger or "", level.name.lower())
                return observing.LogAnswer(json.dumps({"levels": logs.levels()}))
            case observing.Updates(action=action, reason=reason):
                return observing.UpdatesAnswer(json.dumps(await operations.set_updates(action, reason)))
            case observing.Reload():
                reloaded = await operations.reloader.reload()
                return observing.ReloadAnswer(json.dumps(asdict(reloaded)))
        raise RequestRefusedError(ErrorCode.NOT_HERE, f"{type(request).__name__} is not for the control socket")


def _path(path: bytes) -> Path:
    return Path(path.decode(errors="surrogateescape"))


def _attachment(request: messages.Attach) -> Attachment:
    if request.interpose:
        return interposed(request.vm, _path(request.path), resume=bool(request.resume))
    mode = DEFAULT_MODE if request.mode is None else request.mode
    upstream = None if request.upstream is None else _path(request.upstream)
    return Attachment(request.vm, _path(request.path), request.gid, mode, bool(request.resume), upstream)


def _page(entries: list[dict[str, object]], after: bytes | None, limit: int | None) -> messages.ListAnswer:
    """As many entries as are asked for and fit; the cursor is the last one's path."""
    if after is not None:
        entries = [entry for entry in entries if str(entry["path"]).encode(errors="surrogateescape") > after]
    shown: list[str] = []
    room = MAX_JSON - len('{"attachments": []}')
    for entry in entries[: limit or MAX_LIST]:
        text = json.dumps(entry)
        room -= len(text) + 2
        if room < 0:
            break
        shown.append(text)
    last = entries[len(shown) - 1] if shown and len(shown) < len(entries) else None
    cursor = None if last is None else str(last["path"]).encode(errors="surrogateescape")
    return messages.ListAnswer('{"attachments": [' + ", ".join(shown) + "]}", cursor)
