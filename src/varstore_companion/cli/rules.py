"""The options that say which rules and which certificate bodies to use."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from varstore_companion.cli.arguments import add_rules, headroom
from varstore_companion.errors import ConfigurationError
from varstore_companion.files import load_manifest
from varstore_companion.paths import VARSTORED_AUTH
from varstore_companion.sources import Loaded, load_bodies
from varstore_companion.trust.manifest import Manifest


def add_sources(to: ArgumentParser) -> None:
    """`--manifest`, and where certificate bodies come from."""
    add_rules(to)
    to.add_argument(
        "--auth-dir", type=Path, default=VARSTORED_AUTH, metavar="DIR", help="varstored's .auth files (%(default)s)"
    )
    to.add_argument("--certificates", type=Path, metavar="DIR", help="a folder with more certificates (DER or PEM)")
    headroom(to)


def load_rules(options: Namespace) -> tuple[Manifest, Loaded]:
    """What `add_sources` asked for. Raises `ConfigurationError`."""
    manifest = load_manifest(options.manifest)
    if options.auth_dir != VARSTORED_AUTH and not options.auth_dir.is_dir():
        raise ConfigurationError(f"{options.auth_dir}: expected a folder with varstored's .auth files")
    return manifest, load_bodies(manifest, auth_folder=options.auth_dir, folder=options.certificates)


def report_problems(command: str, loaded: Loaded) -> None:
    """Say on standard error which certificate files could not be used: one of them may be why an update is refused."""
    for problem in loaded.problems:
        sys.stderr.write(f"varstore-companion {command}: {problem}\n")
