"""The switches of the tests' own toolstack; its semantics are in the contract suite."""

from uuid import uuid4

import pytest
import trio

from support.memory_toolstack import Call, MemoryToolstack, Written
from varstore_companion.errors import ToolstackRefusedError, ToolstackUnavailableError, ToolstackUnclearError
from varstore_companion.toolstack.interface import Alert, Toolstack, VmRecord
from varstore_companion.trust.state import CertificatesState, Update

OK, AVAILABLE = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE

VM = uuid4()


@pytest.fixture
def toolstack() -> MemoryToolstack:
    made = MemoryToolstack(lambda store: AVAILABLE if store == b"old" else OK)
    made.create(VM, b"before", AVAILABLE)
    return made


async def test_it_is_a_toolstack(toolstack: MemoryToolstack) -> None:
    as_such: Toolstack = toolstack
    assert as_such.name == "memory"
    await as_such.aclose()
    assert toolstack.closed


async def test_a_lost_answer_has_changed_the_store_and_a_refusal_has_not(toolstack: MemoryToolstack) -> None:
    toolstack.fail_next("write", ToolstackUnclearError("lost"), when="after")
    toolstack.fail_next("write", ToolstackUnavailableError("down"), ToolstackRefusedError("CODE", "no"))
    with pytest.raises(ToolstackUnclearError):
        await toolstack.write(VM, b"one", Update.YES)
    for error in (ToolstackUnavailableError, ToolstackRefusedError):
        with pytest.raises(error):
            await toolstack.write(VM, b"two", Update.NO)
    assert await toolstack.read(VM) == VmRecord(b"one", OK, 1)
    assert await toolstack.write(VM, b"three", Update.NO, expected=1) == 2
    assert toolstack.writes == [
        Written(VM, b"one", Update.YES, None),
        *[Written(VM, b"two", Update.NO, None)] * 2,
        Written(VM, b"three", Update.NO, 1),
    ]


async def test_a_hanging_call_waits_where_it_was_asked_to(toolstack: MemoryToolstack) -> None:
    before, after = toolstack.hang_next("write"), toolstack.hang_next("write", when="after")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(toolstack.write, VM, b"one", Update.NO)
        await before.reached.wait()
        assert toolstack.vms[VM].store == b"before"
        before.release.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(toolstack.write, VM, b"two", Update.NO)
        await after.reached.wait()
        assert toolstack.vms[VM].store == b"two"
        nursery.cancel_scope.cancel()
    assert toolstack.vms[VM] == VmRecord(b"two", AVAILABLE, 2)


async def test_each_kind_of_call_has_its_own_switch(toolstack: MemoryToolstack) -> None:
    calls: tuple[Call, ...] = ("read", "mark", "alert")
    for call in calls:
        toolstack.fail_next(call, ToolstackUnavailableError(call))
    assert await toolstack.write(VM, b"old", Update.UNSPECIFIED) == 1
    with pytest.raises(ToolstackUnavailableError, match="read"):
        await toolstack.read(VM)
    with pytest.raises(ToolstackUnavailableError, match="mark"):
        await toolstack.mark(VM, mark=True)
    with pytest.raises(ToolstackUnavailableError, match="alert"):
        await toolstack.alert(VM, Alert("NAME", 5, "body"))
    assert toolstack.alerts == []
    assert toolstack.vms[VM] == VmRecord(b"old", AVAILABLE, 1)
    assert dict(toolstack.calls) == {"write": 1, "read": 1, "mark": 1, "alert": 1}
    assert dict(toolstack.counters) == {"certcheck_runs": 1, "writes_unspecified": 1}
