"""`plan FILE`, `plan --vm UUID`: what an update would do."""

import json
from typing import Any

from varstore_companion.cli import output, store_file
from varstore_companion.cli.arguments import STORE_FILE, add_control, add_json, parser, uuid
from varstore_companion.cli.client import control
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.named import InputError, named
from varstore_companion.cli.rules import add_sources, load_rules, report_problems
from varstore_companion.trust.check import State
from varstore_companion.trust.describe import describe_plan
from varstore_companion.trust.plan import plan
from varstore_companion.wire import messages

EXAMPLES = """\
  varstore-companion plan /run/nvram.b64
  varstore-companion plan --certificates /etc/varstore-companion/certificates --json /run/nvram.b64
  varstore-companion plan --vm 11111111-2222-3333-4444-555555555555

Nothing is changed. The exit code is 0 when there is nothing to do, 1 when an update is needed or refused, and 2 for a store
that varstored cannot read."""

_OWN_RULES = ("manifest", "auth_dir", "certificates", "headroom")


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("plan", "Show what an update would do to a store, or to a VM by asking the daemon.", EXAMPLES)
    parse.add_argument("file", metavar="FILE", nargs="?", help=STORE_FILE)
    parse.add_argument("--vm", type=uuid, metavar="UUID", help="the store that the toolstack holds for this VM")
    add_control(parse)
    add_sources(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    if (options.file is None) == (options.vm is None):
        parse.error("expected FILE or --vm UUID, and not both")
    if options.vm is not None and any(getattr(options, name) != parse.get_default(name) for name in _OWN_RULES):
        parse.error("--vm asks the daemon, which plans with its own rules and certificates")
    if options.vm is not None:
        with control(options.control) as client:
            answer = client.call(messages.Plan(options.vm))
        if not isinstance(answer, messages.PlanAnswer):
            raise InputError(f"the daemon answered with {type(answer).__name__}")
        name, planned = f"vm {options.vm}", json.loads(answer.json)
    else:
        manifest, loaded = load_rules(options)
        with named(options.file):
            blob = store_file.read(options.file).blob
        name, planned = options.file, describe_plan(plan(blob, manifest, loaded.bodies, headroom=options.headroom))
        if planned["refused"] is not None:
            report_problems("plan", loaded)
    if options.json:
        output.print_json(planned)
    else:
        show(name, planned)
    if planned["state_before"] in (State.DAMAGED, State.UNKNOWN):
        return ExitCode.UNUSABLE
    return ExitCode.NO if planned["changes"] or planned["refused"] else ExitCode.FINE


def show(name: str, planned: dict[str, Any]) -> None:
    """Print a plan for people."""
    before, after = planned["bytes_before"], planned["bytes_after"]
    if planned["refused"] is not None:
        output.line(f"{name}: {planned['state_before']}, and {output.coloured('refused', 'bad')}: {planned['refused']}")
    elif not planned["changes"]:
        output.line(f"{name}: {planned['state_before']}, nothing to do")
    else:
        output.line(f"{name}: {planned['state_before']} to {planned['state_after']}, {before:,} to {after:,} bytes")
    for change in planned["changes"]:
        size = f" (+{change['bytes']:,} bytes)" if change["bytes"] else ""
        output.line(f"  {change['action']} in {change['variable']}: {change['subject']}{size}")
    if planned["headroom"] is not None:
        output.line(f"  {max(planned['headroom'], 0):,} bytes can be appended to dbx then")
    if planned["pcr7_changes"]:
        output.line("  PCR 7 changes: BitLocker or systemd-cryptenroll on a vTPM will ask for its recovery key once")
