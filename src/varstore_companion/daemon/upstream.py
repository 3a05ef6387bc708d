"""One VM at the toolstack: what is known of it there, the decision on a write, and the write."""

import logging
from dataclasses import dataclass
from uuid import UUID

import trio

from varstore_companion.daemon.host import Host
from varstore_companion.daemon.rules import Rules
from varstore_companion.daemon.verdicts import Occasion, Verdicts
from varstore_companion.daemon.writer import Writer
from varstore_companion.efi.outline import FILE_LIMIT, Outline, admit
from varstore_companion.errors import OverLimitError, ToolstackUnavailableError, UnknownVersionError
from varstore_companion.toolstack.interface import VmRecord
from varstore_companion.trust.check import Report, State, check, check_outline
from varstore_companion.trust.state import CertificatesState, Update
from varstore_companion.trust.verdict import NO_KEYS, Keys, Verdict, decide, read_keys

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """What the toolstack holds as far as this daemon knows. `keys`: None when its store cannot be read."""

    generation: int
    keys: Keys | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What the toolstack was found to hold. `report`: on its store, by `rules`; None without a store, or after a bug."""

    record: VmRecord
    known: Known
    report: Report | None
    rules: Rules


class Upstream:
    """`turn`: counts the writes, by which a read notices that one came between."""

    __slots__ = (
        "_host",
        "_uuid",
        "certcheck_saved",
        "field",
        "generation",
        "known",
        "last_verdict",
        "report",
        "turn",
        "verdicts",
        "writer",
    )

    def __init__(self, uuid: UUID, host: Host) -> None:
        self._uuid = uuid
        self._host = host
        self.writer = Writer(uuid, host)
        self.turn = 0
        self.generation = 0
        self.known: Known | None = None
        self.report: State | None = None
        self.field: CertificatesState | None = None
        self.last_verdict: Update | None = None
        self.certcheck_saved = 0
        self.verdicts = Verdicts()

    async def look(self) -> VmRecord:
        """Read what the toolstack holds, and remember it. Raises as `Toolstack.read`."""
        return (await self.examine()).record

    async def examine(self) -> Seen:
        """As `look`, with all that was found, for who goes on with it at once: the report holds the store."""
        return self.see(await self._host.toolstack.read(self._uuid))

    def see(self, record: VmRecord, report: Report | None = None) -> Seen:
        """Remember what the toolstack holds, in digests. `report`: on its store, by the rules in force, where there is one."""
        rules = self._host.rules
        self.writer.saw(record.store)
        self.generation = record.generation
        self.field = record.state
        keys: Keys | None = NO_KEYS
        self.report = None
        if record.store is not None:
            keys = None
            try:
                report = report or check(record.store, rules.manifest)
                self.report = report.state
                if report.state is State.DAMAGED:
                    self._host.store_is_damaged(self._uuid, report.reasons)
                if report.outline is not None and report.outline.damage is None:
                    keys = read_keys(report.outline, None if self.known is None else self.known.keys)
            except Exception:
                # A store that a guest made must not keep its VM from starting or resuming.
                log.exception("vm=%s the report on its store met a bug", self._uuid)
        self.known = Known(record.generation, keys)
        return Seen(record, self.known, report, rules)

    def forget(self) -> None:
        """What the toolstack holds may have changed past this daemon."""
        self.known = None
        self.writer.forget()

    def doubt(self) -> None:
        """The VM may have written past this daemon while a store of it waits."""
        self.known = None
        self.writer.doubt()

    async def write(self, blob: bytes, new: Outline | None, deadline: float) -> tuple[Verdict, int]:
        """Decide on a guest's store (`new`: as `admitted`) and store it, until `deadline`. Raises as `Writer.store`."""
        verdict, keys, generation = await self._decide(new, deadline)
        generation = await self.store(blob, verdict.update, generation, deadline)
        if not self.writer.is_doubted:
            self.known = Known(generation, keys)
        if verdict.report is not None:
            self.report = verdict.report
        elif self.report is State.DAMAGED and new is not None:
            # It need not have been the keys, and a guest can mend what was: a dbx, or a variable that stood there twice.
            self.report = check_outline(new, self._host.rules.manifest).state
        self.verdicts.add(self._host.now(), Occasion.WRITE, verdict.update, verdict.reason)
        # A guest can change its boot entries all day long, which is no news.
        level = logging.DEBUG if verdict.update is Update.NO else logging.INFO
        log.log(level, "vm=%s wrote %d bytes, update=%s: %s", self._uuid, len(blob), verdict.update, verdict.reason)
        return verdict, generation

    async def store(self, blob: bytes, update: Update, generation: int, deadline: float, *, may_leave: bool = False) -> int:
        """Store `blob` over `generation` as `Writer.store` does, and remember it."""
        self.turn += 1
        self.known = None
        stored = await self.writer.store(blob, update, generation, deadline, may_leave=may_leave)
        self.generation = stored
        self.last_verdict = update
        self.certcheck_saved += update is not Update.UNSPECIFIED
        self._host.stats.count_write(update)
        if update is Update.YES:
            self.field = CertificatesState.OK
        elif update is Update.UNSPECIFIED:
            self.field = None  # the toolstack derives it anew; known again after the next look
        return stored

    async def _decide(self, new: Outline | None, deadline: float) -> tuple[Verdict, Keys | None, int]:
        """The verdict, the keys of the new store, and the generation that it was decided on."""
        known = self.known
        if new is None:
            known = known or await self._look_until(deadline)
            return (
                Verdict(Update.UNSPECIFIED, "a store of this version cannot be judged", State.UNKNOWN),
                None,
                known.generation,
            )
        keys = read_keys(new, None if known is None else known.keys)
        if known is None or known.keys is None or keys.members != known.keys.members:
            # Only a change of the keys needs the field; it is read together with the store it belongs to.
            known = await self._look_until(deadline)
        return decide(known.keys, keys, new, self.field, self._host.rules.manifest), keys, known.generation

    async def _look_until(self, deadline: float) -> Known:
        with trio.move_on_at(deadline):
            return (await self.examine()).known
        raise ToolstackUnavailableError("the toolstack did not say in time what it holds")


def admitted(blob: bytes, vm: UUID) -> Outline | None:
    """A store that a guest may write; None for one of a newer version, which is passed through unread.

    Raises `MalformedError` for what is not a store, and `OverLimitError`.
    """
    try:
        return admit(blob)
    except UnknownVersionError as error:
        if len(blob) > FILE_LIMIT:
            raise OverLimitError(f"a store of {len(blob):,} bytes: varstored loads at most {FILE_LIMIT:,}") from None
        log.warning("vm=%s passes a store through unread: %s", vm, error)
        return None
