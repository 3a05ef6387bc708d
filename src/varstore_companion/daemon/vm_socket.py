"""What a VM's own socket answers: an unmodified varstored's calls, and the framed protocol's requests, on that one VM."""

import logging
from contextlib import suppress

import trio

from varstore_companion.daemon.acceptor import Served
from varstore_companion.daemon.attachments import Attachment
from varstore_companion.daemon.boot_read import BootRead, fitting
from varstore_companion.daemon.cold_boot import BootOutcome
from varstore_companion.daemon.complaints import Complaints
from varstore_companion.daemon.first_byte import POST, FirstByte
from varstore_companion.daemon.limits import FREE_BYTES, Share
from varstore_companion.daemon.session import RequestRefusedError, Session, welcome
from varstore_companion.daemon.stock import Stock, answer_at_once
from varstore_companion.daemon.vm import Vm
from varstore_companion.trust.state import Update
from varstore_companion.unix_stream import UnixStream
from varstore_companion.wire import messages
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.fields import clip
from varstore_companion.wire.limits import MAX_TEXT
from varstore_companion.wire.messages import AnswerMessage, RequestMessage, Socket

log = logging.getLogger(__name__)

FIRST_BYTES = 131_072
"""Of a connection, looked for as it is taken: more than the write of an ordinary store, which is then read at once."""

_VERDICTS = {
    Update.UNSPECIFIED: messages.Verdict.UNSPECIFIED,
    Update.YES: messages.Verdict.YES,
    Update.NO: messages.Verdict.NO,
}
_OUTCOMES = {
    BootOutcome.NOT_ASKED: messages.Outcome.NOT_ASKED,
    BootOutcome.UPDATED: messages.Outcome.UPDATED,
    BootOutcome.NOTHING_TO_DO: messages.Outcome.NOTHING_TO_DO,
    BootOutcome.FAILED: messages.Outcome.FAILED,
}


class VmSocket:
    """One attached socket, which is the VM's identity, whatever its peer says (invariant 8).

    `fresh`: the socket has just been attached, not brought back, so that one read may be a boot (see `BootRead`).
    """

    __slots__ = ("_attachment", "_boots", "_complaints", "_share", "_stock", "_vm")

    def __init__(self, attachment: Attachment, vm: Vm, *, fresh: bool) -> None:
        self._attachment = attachment
        self._vm = vm
        self._complaints = Complaints(f"vm={vm.uuid}", log)
        self._boots = BootRead(vm, left=fresh and not attachment.resume)
        self._share = Share(vm.in_flight)
        self._stock = Stock(vm, self._boots, self._complaints, self._share)

    @property
    def boot_is_left(self) -> bool:
        """Whether the next read of a peer that does not say why it reads is taken for the boot."""
        return self._boots.left

    def session(self, stream: UnixStream) -> Served | bytes:
        """The session of one connection, or the whole answer to one that needs none."""
        # What is wrong with the socket its session finds, too.
        with suppress(trio.BrokenResourceError):
            # Who connects speaks at once, and has spoken by the time that the connection is taken.
            if data := stream.receive_now(FREE_BYTES if self._share.is_full else FIRST_BYTES):
                answer = answer_at_once(data)
                if answer is not None:
                    return answer
                stream.unread(data)
                if data.startswith(POST):
                    return self._stock.session(stream)
        return FirstByte(stream, framed=self._framed, post=self._stock.session)

    def _framed(self, stream: UnixStream, begun: float) -> Session:
        return Session(
            stream, Socket.VM, self._complaints, greet=self._greet, handle=self._handle, begun=begun, share=self._share
        )

    async def _greet(self, hello: RequestMessage) -> AnswerMessage:
        if isinstance(hello, messages.Hello) and hello.vm != self._vm.uuid:
            raise RequestRefusedError(ErrorCode.WRONG_VM, f"this socket is not that of VM {hello.vm}")
        return await welcome(hello)

    async def _handle(self, request: RequestMessage) -> AnswerMessage:
        vm = self._vm
        match request:
            case messages.Ping(data=data):
                return messages.PingAnswer(data)
            case messages.PutStore(store=store):
                self._boots.runs()
                written = await vm.put(store)
                durable = messages.Durable.JOURNAL if written.journaled else messages.Durable.TOOLSTACK
                return messages.PutStoreAnswer(_VERDICTS[written.verdict.update], durable, written.generation)
            case messages.GetStore(reason=messages.Reason.BOOT) if not self._attachment.resume:
                return await self._boot()
            case messages.GetStore(reason=reason):
                if reason is messages.Reason.RESUME:
                    self._boots.runs()
                record = await vm.read_for_peer()
                return _store_answer(record.store, record.generation, messages.Outcome.NOT_ASKED, None)
            case messages.SbFailure(detail=detail):
                await vm.secure_boot_failed(detail)
                return messages.SbFailureAnswer()
        raise RequestRefusedError(ErrorCode.NOT_HERE, f"{type(request).__name__} is not for a VM's socket")

    async def _boot(self) -> AnswerMessage:
        boot = await self._boots.boot()
        return _store_answer(boot.store, boot.generation, _OUTCOMES[boot.outcome], boot.detail)


def _store_answer(store: bytes | None, generation: int, outcome: messages.Outcome, detail: str | None) -> AnswerMessage:
    presence = messages.Presence.ABSENT if fitting(store) is None else messages.Presence.PRESENT
    return messages.GetStoreAnswer(presence, generation, outcome, store, None if detail is None else clip(detail, MAX_TEXT))
