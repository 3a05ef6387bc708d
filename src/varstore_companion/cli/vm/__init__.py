"""`vm list|show|create|...`: the VMs of the embedded toolstack, with or without a running daemon. One command a file."""

from varstore_companion.cli.arguments import parser
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.vm import copies, create, destroy, export, importing, listing, marks, pool, revert, show
from varstore_companion.cli.vm.common import REFUSALS, Run, print_refusal
from varstore_companion.errors import ToolstackRefusedError

EXAMPLES = """\
  varstore-companion vm create --name web-1 --store nvram.b64
  varstore-companion vm list
  varstore-companion vm show 11111111-2222-3333-4444-555555555555 --json
  varstore-companion vm mark 11111111-2222-3333-4444-555555555555
  varstore-companion vm snapshot 11111111-2222-3333-4444-555555555555 --name before
  varstore-companion vm export 11111111-2222-3333-4444-555555555555 -o web-1.json
  varstore-companion vm pool --auto-update yes

Each command has its own --help. The exit code is 0 when it was done, 1 when it was refused, as a mark is from ok
(OPERATION_NOT_ALLOWED), and 2 for wrong usage, an unknown VM, or input that cannot be read."""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("vm", "Look at and change the VMs of the embedded toolstack.", EXAMPLES)
    names = "list|show|create|import|export|clone|copy|snapshot|revert|mark|unmark|destroy|pool"
    commands = parse.add_subparsers(dest="command", required=True, metavar=names)
    for each in (listing, show, create, importing, export, copies, revert, marks, destroy, pool):
        each.add(commands)
    options = parse.parse_args(arguments)
    run: Run = options.run
    try:
        return run(options)
    except ToolstackRefusedError as error:
        if error.code not in REFUSALS:
            raise
        print_refusal(options, error)
        return ExitCode.NO
