"""`varstore-nvram-certcheck`: the drop-in that the toolstack runs on a store, as a process of its own for each.

Without argparse, trio and cryptography: it is started for every write whose verdict nobody knows.
"""

import gc
import os
import sys

# Nothing here lives long enough to be collected, and looking for it would be a tenth of the run.
gc.disable()

from varstore_companion.cli import store_file
from varstore_companion.cli.exit_code import ExitCode
from varstore_companion.errors import CompanionError, MalformedError
from varstore_companion.files import load_manifest
from varstore_companion.trust.check import CertCheck, check

USAGE = """\
usage: varstore-nvram-certcheck [--json] FILE

Print whether the Secure Boot certificates in a VM's UEFI variable store are up to date.
FILE holds the value of the NVRAM key EFI-variables (base64 text), or the raw store; - is standard input.

  update_ok        nothing to do
  update_required  a certificate of 2011 is there without its successor
  unknown          the store cannot be read

The exit code is 0 for each of these, and 2 when there is no FILE to read.
With --json: {"certcheck": ..., "state": ..., "missing": [names]}.

examples:
  varstore-nvram-certcheck /run/nvram.b64
  xe vm-param-get uuid=UUID param-name=NVRAM param-key=EFI-variables | varstore-nvram-certcheck -
"""


def main(arguments: list[str]) -> ExitCode:
    """Run the command; prints the answer on standard output, errors on standard error."""
    as_json = "--json" in arguments
    names = [argument for argument in arguments if argument != "--json"]
    if "-h" in names or "--help" in names:
        sys.stdout.write(USAGE)
        return ExitCode.FINE
    if len(names) != 1 or (names[0].startswith("-") and names[0] != "-"):
        sys.stderr.write(USAGE)
        return ExitCode.UNUSABLE
    name = names[0]
    try:
        blob = store_file.read(name).blob
    except OSError as error:
        sys.stderr.write(f"varstore-nvram-certcheck: {name}: {error.strerror}\n")
        return ExitCode.UNUSABLE
    except MalformedError as error:
        sys.stderr.write(f"varstore-nvram-certcheck: {name}: {error}\n")
        _answer(CertCheck.UNKNOWN, "damaged", [], as_json=as_json)
        return ExitCode.FINE
    try:
        report = check(blob, load_manifest())
    except CompanionError as error:
        sys.stderr.write(f"varstore-nvram-certcheck: {error}\n")
        return ExitCode.UNUSABLE
    for reason in report.reasons:
        sys.stderr.write(f"varstore-nvram-certcheck: {name}: {report.state}: {reason}\n")
    _answer(report.certcheck, report.state, [certificate.name for _, certificate in report.missing], as_json=as_json)
    return ExitCode.FINE


def _answer(certcheck: CertCheck, state: str, missing: list[str], *, as_json: bool) -> None:
    if as_json:
        import json  # noqa: PLC0415  half a millisecond that the toolstack's runs do not need

        sys.stdout.write(json.dumps({"certcheck": certcheck, "state": state, "missing": missing}) + "\n")
    else:
        sys.stdout.write(f"{certcheck}\n")


def run() -> None:
    """Entry point of the script."""
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # Taking the interpreter apart would be a fifth of the whole run, and the process is over.
    os._exit(code)


if __name__ == "__main__":
    run()
