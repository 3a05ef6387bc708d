"""What the commands on VMs share: opening the toolstack, and how a VM is shown."""

import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_json, add_rules, add_state_dir, uuid
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.named import InputError
from varstore_companion.errors import ToolstackRefusedError
from varstore_companion.files import load_manifest
from varstore_companion.toolstack.database import FILE_NAME
from varstore_companion.toolstack.operations import Operations
from varstore_companion.toolstack.records import VmSummary
from varstore_companion.trust.check import derived_state

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    Commands = _SubParsersAction[ArgumentParser]

Run = Callable[[Namespace], ExitCode]

REFUSALS = frozenset({"OPERATION_NOT_ALLOWED", "VM_IS_TEMPLATE", "VM_IS_SNAPSHOT", "VM_REVERT_FAILED"})
"""xapi's errors that are an answer to a well-formed request: no."""

PROGRESS_SECONDS = 1.0
"""From here on a terminal is told how far an upgrade of the file is."""


def command(commands: "Commands", name: str, text: str, examples: str, run: Run) -> ArgumentParser:
    """Add a command with the options that all of them have."""
    made = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.set_defaults(run=run)
    add_rules(made)
    add_state_dir(made)
    add_json(made)
    return made


def add_vm(to: ArgumentParser, metavar: str = "UUID") -> None:
    """The VM that a command is about."""
    to.add_argument("uuid", type=uuid, metavar=metavar)


def opened(options: Namespace, *, make: bool = False) -> Operations:
    """The toolstack that the options name; `make` it when it is missing. The caller closes it.

    Raises `InputError` when it is missing, `ConfigurationError`, `ToolstackUnavailableError`.
    """
    path = options.state_dir / FILE_NAME
    if not make and not path.exists():
        raise InputError(f"{path}: there is no embedded toolstack")
    derive = partial(derived_state, manifest=load_manifest(options.manifest))
    progress = Progress(time.monotonic)
    try:
        return Operations(path, derive, progress=progress)
    finally:
        progress.end()


class Progress:
    """Tells a terminal how far an upgrade is, on one line of standard error, once it takes long."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun = clock()
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        """As `Operations` calls it."""
        if sys.stderr.isatty() and (self._shown or self._clock() - self._begun >= PROGRESS_SECONDS):
            self._shown = True
            sys.stderr.write(f"\rupgrading the toolstack's file: {done:,} of {total:,} VMs")
            sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._shown:
            sys.stderr.write("\n")


def describe(vm: VmSummary) -> dict[str, object]:
    """A VM as plain values for JSON."""
    return {
        "uuid": str(vm.uuid),
        "name": vm.name,
        "kind": vm.kind,
        "firmware": vm.firmware,
        "snapshot_of": None if vm.snapshot_of is None else str(vm.snapshot_of),
        "secureboot_certificates_state": vm.state,
        "stale": vm.stale,
        "generation": vm.generation,
        "store_bytes": vm.store_bytes,
    }


def print_vm(options: Namespace, operations: Operations, vm: UUID) -> None:
    """Print a VM's record."""
    document = describe_whole(operations, vm)
    if options.json:
        output.print_json({**document, "refused": None})
        return
    cells = [[key.replace("_", " "), cell(value)] for key, value in document.items()]
    output.table(cells, ["", ""])


def print_refusal(options: Namespace, error: ToolstackRefusedError) -> None:
    """Say why not, beside what holds all the same."""
    if options.json:
        with opened(options) as operations:
            output.print_json({**describe_whole(operations, options.uuid), "refused": str(error)})
    else:
        sys.stderr.write(f"varstore-companion vm: {error}\n")


def describe_whole(operations: Operations, vm: UUID) -> dict[str, object]:
    """A VM and the other keys of its NVRAM."""
    found = operations.record(vm)
    return {**describe(found), "nvram_keys": sorted(found.nvram.texts())}


def cell(value: object) -> str:
    """A value in a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value in (None, "") else str(value)
