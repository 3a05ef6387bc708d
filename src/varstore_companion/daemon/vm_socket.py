"""What a VM's own socket answers: the framed protocol's requests, carried out on that one VM."""

import trio

from varstore_companion.daemon.attachments import Attachment
from varstore_companion.daemon.session import RequestRefusedError, Session, welcome
from varstore_companion.daemon.vm import BootOutcome, Vm
from varstore_companion.errors import OverLimitError
from varstore_companion.trust.state import Update
from varstore_companion.wire import messages
from varstore_companion.wire.errors import ErrorCode
from varstore_companion.wire.fields import clip
from varstore_companion.wire.limits import MAX_STORE, MAX_TEXT
from varstore_companion.wire.messages import AnswerMessage, RequestMessage, Socket

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
    """One attached socket, which is the VM's identity, whatever its peer says (invariant 8)."""

    __slots__ = ("_attachment", "_vm")

    def __init__(self, attachment: Attachment, vm: Vm) -> None:
        self._attachment = attachment
        self._vm = vm

    def session(self, stream: trio.SocketStream) -> Session:
        """The session of one connection."""
        return Session(stream, Socket.VM, f"vm={self._vm.uuid}", self._greet, self._handle)

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
                verdict, generation = await vm.put(store)
                return messages.PutStoreAnswer(_VERDICTS[verdict.update], messages.Durable.TOOLSTACK, generation)
            case messages.GetStore(reason=messages.Reason.BOOT) if not self._attachment.resume:
                return await self._boot()
            case messages.GetStore():
                record = await vm.read()
                return _store_answer(record.store, record.generation, messages.Outcome.NOT_ASKED, None)
            case messages.SbFailure(detail=detail):
                await vm.secure_boot_failed(detail)
                return messages.SbFailureAnswer()
        raise RequestRefusedError(ErrorCode.NOT_HERE, f"{type(request).__name__} is not for a VM's socket")

    async def _boot(self) -> AnswerMessage:
        boot = await self._vm.boot()
        return _store_answer(boot.store, boot.generation, _OUTCOMES[boot.outcome], boot.detail)


def _store_answer(store: bytes | None, generation: int, outcome: messages.Outcome, detail: str | None) -> AnswerMessage:
    if store is not None and len(store) > MAX_STORE:
        raise OverLimitError(f"the toolstack holds a store of {len(store):,} bytes: varstored loads at most {MAX_STORE:,}")
    presence = messages.Presence.ABSENT if store is None else messages.Presence.PRESENT
    return messages.GetStoreAnswer(presence, generation, outcome, store, None if detail is None else clip(detail, MAX_TEXT))
