"""`inspect FILE`: the report on a store."""

from varstore_companion.cli import output, store_file
from varstore_companion.cli.arguments import STORE_FILE, add_json, add_rules, parser
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.cli.named import named
from varstore_companion.efi.store import parse_outline
from varstore_companion.files import load_manifest
from varstore_companion.trust.check import Report, State, check
from varstore_companion.trust.describe import describe_report
from varstore_companion.trust.findings import findings
from varstore_companion.trust.manifest import Manifest

EXAMPLES = """\
  varstore-companion inspect /run/nvram.b64
  xe vm-param-get uuid=UUID param-name=NVRAM param-key=EFI-variables | varstore-companion inspect --json -

The exit code is 0 when nothing is to be done, 1 when an update is needed, and 2 for a store that varstored cannot read."""

_COLOUR = {State.OK: "good", State.UPDATE_AVAILABLE: "warn", State.DAMAGED: "bad", State.UNKNOWN: "bad"}


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    parse = parser("inspect", "Report on a VM's UEFI variable store.", EXAMPLES)
    parse.add_argument("file", metavar="FILE", help=STORE_FILE)
    add_rules(parse)
    add_json(parse)
    options = parse.parse_args(arguments)
    manifest = load_manifest(options.manifest)
    with named(options.file):
        blob = store_file.read(options.file).blob
    report = check(blob, manifest)
    if options.json:
        output.print_json(describe_report(report, manifest, len(blob)))
    else:
        _print(options.file, blob, report, manifest)
    if report.state in (State.DAMAGED, State.UNKNOWN):
        return ExitCode.UNUSABLE
    return ExitCode.NO if report.state is State.UPDATE_AVAILABLE else ExitCode.FINE


def _print(name: str, blob: bytes, report: Report, manifest: Manifest) -> None:
    state = output.coloured(report.state, _COLOUR.get(report.state, "bold"))
    output.line(f"{name}: {state} (certcheck: {report.certcheck}), {len(blob):,} bytes")
    for variable, certificate in report.missing:
        output.line(f"  missing in {variable}: {certificate.subject}")
    for finding in findings(report, manifest):
        output.line(f"  {finding.code}: {finding.detail}")
    if report.outline is not None:
        variables = parse_outline(report.outline).variables
        rows = [
            [each.text, f"{len(each.data):,}", f"{each.attributes:#x}", str(each.timestamp), str(each.guid)]
            for each in variables
        ]
        output.table(rows, ["variable", "bytes", "attributes", "time", "vendor GUID"], indent="  ")
