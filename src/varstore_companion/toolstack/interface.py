"""What the daemon asks of a toolstack. xapi's words; every adapter passes the contract suite in tests/contracts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from varstore_companion.trust.state import CertificatesState, Update

LATE_SECONDS = 120.0
"""For how long a call whose answer was not awaited may still be carried out: the guard's own limit on a call to xapi."""


@dataclass(frozen=True, slots=True)
class VmRecord:
    """One VM's store and field, read together.

    `store`: the bytes behind the NVRAM key `EFI-variables`, decoded; None only when the toolstack said that the key
    is absent (first boot). `state`: None when the toolstack has no such field (a guard from before it).
    `generation`: grows with every change of the store that the adapter can see.
    """

    store: bytes | None
    state: CertificatesState | None
    generation: int


@dataclass(frozen=True, slots=True)
class Alert:
    """A message for the operator, as in xapi's `message.create`. The body must stand alone: a guard renames it."""

    name: str
    priority: int
    body: str


class Toolstack(Protocol):
    """Where the VMs' NVRAM lives.

    Every method raises `ToolstackUnavailableError`, `ToolstackRefusedError` (`HANDLE_INVALID` for an unknown VM) or,
    where something was to be changed, `ToolstackUnclearError`. A cancelled call may or may not have been carried out.
    """

    @property
    def name(self) -> str:
        """The adapter's name as in `serve --toolstack`."""

    @property
    def late_seconds(self) -> float:
        """For how long a call that was given up may still be carried out: an answer that did not come says nothing before.

        0 where that is known to the adapter itself, which then does not leave the call before it is over.
        """

    def has_field(self, vm: UUID) -> bool | None:
        """Whether the VM has the field, None as long as nobody has asked. Without it nothing is updated at a boot."""

    async def read(self, vm: UUID) -> VmRecord:
        """Read the VM's store and field together (xapi: `VM.get_NVRAM`, `VM.get_secureboot_certificates_state`)."""

    async def write(
        self, vm: UUID, store: bytes, update: Update, *, expected: int | None = None, deadline: float = float("inf")
    ) -> int:
        """Store `store` with the verdict `update` and return the new generation (xapi: `VM.set_NVRAM_EFI_variables`).

        `expected`: the generation on which the verdict was decided; raises `ToolstackConflictError`, with nothing
        changed, when the adapter knows that the store has changed since. None: unconditional. `deadline`: trio's clock, when
        the call is given up, as one whose answer was lost unless it is known that nothing was done.
        """

    async def mark(self, vm: UUID, *, mark: bool) -> CertificatesState:
        """Mark the VM for an update at its next boot, or take the mark back; return the state after.

        From `ok` it is refused with `OPERATION_NOT_ALLOWED` (xapi: `VM.update_secureboot_certificates_on_boot`).
        """

    async def alert(self, vm: UUID, alert: Alert) -> None:
        """Tell the operator (xapi: `message.create`)."""

    async def aclose(self) -> None:
        """Release what the adapter holds. The daemon calls it once, last."""


class Upstreams(Protocol):
    """Of a toolstack with a socket for each VM: where a VM's is."""

    def set_upstream(self, vm: UUID, path: Path | None) -> None:
        """The VM's socket is at `path` from now on; None forgets the VM."""
