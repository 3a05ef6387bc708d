"""`unmark --vm UUID`: see `mark`."""

from varstore_companion.cli import mark
from varstore_companion.cli.exit_code import ExitCode

EXAMPLES = mark.examples("unmark")


def main(arguments: list[str]) -> ExitCode:
    """Run the command."""
    return mark.run("unmark", arguments)
