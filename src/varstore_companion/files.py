"""Reading files that a person names: bounded, and with errors that say which file and why. And the manifest's file.

Without pathlib, which would be a tenth of certcheck's whole run.
"""

import os

from varstore_companion.errors import ConfigurationError, MalformedError
from varstore_companion.trust import manifest as manifests
from varstore_companion.trust.manifest import Manifest

SHIPPED_MANIFEST = os.path.join(os.path.dirname(manifests.__file__), "microsoft-2023.toml")
MANIFEST_LIMIT = 262_144
"""Bytes of a manifest: a hundred times the one that is shipped."""


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a file of at most `limit` bytes. Raises `OSError`, and `MalformedError`, without its name, for a larger one."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise MalformedError("file", offset=limit, expected=f"at most {limit:,} bytes")
    return data


def load_manifest(path: str | os.PathLike[str] | None = None) -> Manifest:
    """Read the manifest at `path`, or the one that is shipped. Raises `ConfigurationError`."""
    path = path or SHIPPED_MANIFEST
    try:
        return manifests.parse(read_file(path, MANIFEST_LIMIT).decode(), os.fspath(path))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, MalformedError) as error:
        raise ConfigurationError(f"{path}: not a manifest: {error}") from None
