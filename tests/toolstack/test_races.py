"""Several processes that change one VM's NVRAM and field at once: at no moment do the two disagree (one transaction)."""

from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from support.processes import TESTS, python
from support.vms import OK, ON_BOOT, derive, old_store
from varstore_companion.toolstack.nvram import Nvram
from varstore_companion.toolstack.operations import Operations
from varstore_companion.toolstack.records import Vm, with_mark

_BEGIN = f"""{TESTS}
from itertools import count
from pathlib import Path
from uuid import UUID
from support.vms import AVAILABLE, OK, derive, new_store, old_store
from varstore_companion.errors import ToolstackRefusedError
from varstore_companion.toolstack.nvram import EFI_VARIABLES, Nvram
from varstore_companion.toolstack.operations import Operations
from varstore_companion.trust.state import Update
vm = UUID(sys.argv[2])
operations = Operations(Path(sys.argv[1]), derive, busy_timeout=60)
def store(number):
    return (new_store if number % 3 == 0 else old_store)(number, 64 + number * 97 % 20000)
def change(number):
"""
_END = """
for number in count():
    change(number)
    if number == 3:
        print("going", flush=True)
"""

GUEST = """
    made = store(number)
    if derive(made) is OK:
        operations.write(vm, made, Update.YES)
    else:
        operations.write_checked(vm, made, AVAILABLE)
"""
TOOLSTACK = """
    operations.set_nvram(vm, Nvram(store(number), {"number": str(number)}))
"""
RESTORE = """
    snapshot = operations.snapshot(vm, str(number))
    operations.revert(snapshot)
    operations.destroy(snapshot)
"""
OPERATOR = """
    try:
        operations.mark(vm)
        operations.unmark(vm) if number % 2 else None
    except ToolstackRefusedError as error:
        assert error.code == "OPERATION_NOT_ALLOWED", error
"""

STATES, STORES = 3, 30
"""What has to be seen before the race counts as one: each state of the field, and so many stores."""
MOST = 50_000
"""Readings that differ; thousands of times as many as it takes."""


def _agrees(vm: Vm) -> bool:
    assert vm.nvram.store is not None
    return vm.state is with_mark(derive(vm.nvram.store), marked=vm.state is ON_BOOT) and not vm.stale


def test_nvram_and_field_agree_at_every_moment_and_after_a_kill(tmp_path: Path) -> None:
    path, vm = tmp_path / "toolstack.db", uuid4()
    with Operations(path, derive, busy_timeout=60) as operations:
        operations.create_vm(vm, "name", Nvram(old_store()))
        with ExitStack() as stack:
            changers = [
                stack.enter_context(python(_BEGIN + change + _END, path, vm))
                for change in (GUEST, TOOLSTACK, RESTORE, OPERATOR)
            ]
            for _, _, said in changers:
                assert said.readline() == "going\n"
            seen = [operations.record(vm)]
            while len({found.state for found in seen}) < STATES or len({found.generation for found in seen}) < STORES:
                found = operations.record(vm)
                assert found.generation >= seen[-1].generation
                if (found.generation, found.state) != (seen[-1].generation, seen[-1].state):
                    seen.append(found)
                assert len(seen) < MOST
            # Leaving kills all four wherever they are.
        seen += operations.records()
        assert [found for found in seen if not _agrees(found)] == []
        operations.set_nvram(vm, Nvram(None))
        assert operations.state(vm) is OK
