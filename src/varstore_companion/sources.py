"""Reads certificate bodies from the host's files, for the daemon and for the commands."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from varstore_companion.errors import ConfigurationError, MalformedError
from varstore_companion.files import read_file
from varstore_companion.paths import VARSTORED_AUTH
from varstore_companion.trust import certificates
from varstore_companion.trust.manifest import Manifest

FILE_LIMIT = 262_144
"""Bytes of one certificate file: ten times the largest that is known (Microsoft's dbx update)."""
FILES_LIMIT = 1_000
"""Files read from one folder: a wrong path must not read a whole disk."""
_SUFFIXES = frozenset({".auth", ".bin", ".cer", ".crt", ".der", ".pem"})


@dataclass(frozen=True, slots=True)
class Loaded:
    """The bodies that were found, where each came from, and the files that could not be used, as lines for the log."""

    bodies: certificates.Bodies
    origins: dict[bytes, str]
    problems: tuple[str, ...]


def load_bodies(
    manifest: Manifest, *, auth_folder: Path | None = VARSTORED_AUTH, folder: Path | None = None, virt_firmware: bool = True
) -> Loaded:
    """Read certificate bodies from varstored's `.auth` files, then `folder`, then the virt-firmware package.

    The first source of a body counts. Raises `ConfigurationError` when `folder`, which an operator named, cannot be listed;
    single files that cannot be used are in the result's `problems`.
    """
    bodies: dict[bytes, bytes] = {}
    origins: dict[bytes, str] = {}
    problems: list[str] = []
    for place in (auth_folder, folder, _virt_firmware() if virt_firmware else None):
        if place is None:
            continue
        try:
            paths = _files(place)
        except OSError as error:
            if place is folder:
                raise ConfigurationError(f"{folder}: expected a folder with certificates ({error.strerror})") from None
            if not isinstance(error, FileNotFoundError):
                problems.append(f"{place}: not used: {error}")
            continue
        for path in paths:
            try:
                accepted = certificates.accept(certificates.from_file(read_file(path, FILE_LIMIT)), manifest)
            except (OSError, MalformedError) as error:
                problems.append(f"{path}: not used: {error}")
                continue
            for digest, der in accepted.items():
                if digest not in bodies:
                    bodies[digest], origins[digest] = der, str(path)
    return Loaded(bodies, origins, tuple(problems))


def virt_firmware_certificates() -> Iterator[bytes]:
    """Every certificate of Microsoft's in the virt-firmware package, as DER; none without the package."""
    folder = _virt_firmware()
    for path in _files(folder) if folder else ():
        yield from certificates.from_file(read_file(path, FILE_LIMIT))


def _virt_firmware() -> Path | None:
    """The folder with Microsoft's certificates in the package, found without importing any of its code."""
    spec = importlib.util.find_spec("virt")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location, "firmware", "certs", "microsoft.com")
        if folder.is_dir():
            return folder
    return None


def _files(folder: Path) -> list[Path]:
    """The certificate files of a folder. Raises `OSError` when it cannot be listed."""
    candidates = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    return candidates[:FILES_LIMIT]
