"""`backups`: the stores that were kept before something replaced them."""

from functools import partial

from varstore_companion.cli import output
from varstore_companion.cli.arguments import add_control, add_json, parser, uuid
from varstore_companion.cli.client import control, pages
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.moment import moment
from varstore_companion.wire import messages

EXAMPLES = """\
  varstore-companion backups
  varstore-companion backups --vm 11111111-2222-3333-4444-555555555555
  varstore-companion backups --json | jq '.backups[] | select(.problem != null)'

Each VM's are listed with the oldest first; `restore` brings one back. The state is that of the store when it was kept;
`restore` looks whether the file is still that store. The daemon keeps the files, with report and plan beside each, in its
state folder under backups."""


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("backups", "List the stores that were kept before an update or a restore replaced them.", EXAMPLES)
    parse.add_argument("--vm", type=uuid, metavar="UUID", help="those of one VM")
    add_control(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    with control(options.control) as client:
        entries = [entry for page in pages(client, partial(messages.Backups, options.vm)) for entry in page["backups"]]
    if options.json:
        output.print_json({"backups": entries})
        return ExitCode.FINE
    rows = [
        [
            entry["vm"],
            entry["id"],
            moment(entry["at"]),
            entry["why"] or "-",
            entry["problem"] or entry["state"] or "-",
            "-" if entry["bytes"] is None else f"{entry['bytes']:,}",
            entry["sha256"] or "-",
        ]
        for entry in entries
    ]
    output.table(rows, ["vm", "backup", "taken", "before", "state", "bytes", "sha256"])
    return ExitCode.FINE
