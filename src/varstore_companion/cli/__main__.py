"""`python -m varstore_companion.cli`: the same as `varstore-companion`."""

from varstore_companion.cli.main import run

run()
