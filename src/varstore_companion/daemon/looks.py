"""Looking unasked at what the toolstack holds of a VM: its next write may find the toolstack away."""

import logging
from collections.abc import Callable
from uuid import UUID

import trio

from varstore_companion.daemon.vm import Vm
from varstore_companion.errors import JournalError, ToolstackError

log = logging.getLogger(__name__)

LOOKS = 4
"""VMs that are looked at at once: a guard's restart concerns all VMs of a host."""
LOOK_SECONDS = (1.0, 30.0)
"""The first pause before the next try, doubled up to the second."""


class Looks:
    """`has_socket`: whether a VM has one; there is no way to the toolstack of one that has none."""

    def __init__(self, has_socket: Callable[[UUID], bool]) -> None:
        self._has_socket = has_socket
        self._at_once = trio.Semaphore(LOOKS)

    async def look_at(self, vm: Vm) -> None:
        """Have it known what a VM's toolstack holds, as long as it has a socket."""
        pause, longest = LOOK_SECONDS
        while self._has_socket(vm.uuid) and not vm.is_known:
            async with self._at_once:
                try:
                    await vm.look()
                except (ToolstackError, JournalError, OSError) as error:
                    log.debug("vm=%s what the toolstack holds is not known yet: %s", vm.uuid, error)
                except Exception:
                    # Nobody asked for it: it must not end the daemon.
                    log.exception("vm=%s the look at its store met a bug", vm.uuid)
                    return
            await trio.sleep(pause)
            pause = min(2 * pause, longest)
