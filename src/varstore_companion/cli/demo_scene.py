"""What the demo's story plays on: stores made from real certificates of 2011, and a daemon of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from varstore_companion.cli.client import Client, ConnectError
from varstore_companion.efi import guid, siglist
from varstore_companion.efi.names import KeyVariable
from varstore_companion.efi.store import Ancillary, Store
from varstore_companion.efi.timestamp import EfiTime
from varstore_companion.efi.variable import Variable
from varstore_companion.errors import CompanionError, ConfigurationError
from varstore_companion.sources import virt_firmware_certificates
from varstore_companion.trust.manifest import Manifest
from varstore_companion.wire.messages import ClientKind

READY_SECONDS = 20.0
BOOT_ENTRY = 0x07
"""NON_VOLATILE | BOOTSERVICE_ACCESS | RUNTIME_ACCESS."""
KEY = 0x27
"""The same with TIME_BASED_AUTHENTICATED_WRITE_ACCESS."""
OWNER = UUID("c0ffee00-5e2e-4e1b-9c58-0d0d0d0d0d0d")
"""The SignatureOwner of the demo's own keys."""
_ENROLLED = EfiTime(bytes.fromhex("e30703140c0000000000000000000000"))


class StepError(CompanionError):
    """A step of the story did not go as it should."""


def certificates_of_2011(manifest: Manifest) -> dict[str, bytes]:
    """Microsoft's certificates of 2011 by their names in the manifest. Raises `ConfigurationError` when they are not there."""
    found = {sha256(der).digest(): der for der in virt_firmware_certificates()}
    wanted = {rule.present.name: rule.present.sha256 for rule in manifest.rules}
    missing = [name for name, digest in wanted.items() if digest not in found]
    if missing:
        raise ConfigurationError(
            f"the demo needs the certificates {', '.join(missing)} of the package virt-firmware: pip install virt-firmware"
        )
    return {name: found[digest] for name, digest in wanted.items()}


def own_certificate(name: str) -> bytes:
    """A fresh self-signed RSA certificate, as DER."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime(2019, 3, 20, tzinfo=UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin)
    return builder.not_valid_after(begin + timedelta(days=7300)).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def store_of_2019(manifest: Manifest, platform_key: bytes) -> Store:
    """The store of a VM made in 2019: Microsoft's certificates of 2011, a platform key, and a few boot entries."""
    old = certificates_of_2011(manifest)

    def key(variable: KeyVariable, *lists: siglist.SignatureList) -> Variable:
        name, vendor = variable.key
        return Variable(name, siglist.build(lists), UUID(bytes_le=vendor), KEY, _ENROLLED, bytes(32))

    def plain(name: str, data: bytes) -> Variable:
        return Variable(name.encode("utf-16-le"), data, guid.EFI_GLOBAL_VARIABLE, BOOT_ENTRY, EfiTime(bytes(16)), bytes(32))

    by_rule = {
        variable: tuple(
            siglist.x509_list(manifest.signature_owner, old[rule.present.name])
            for rule in manifest.rules
            if rule.variable is variable
        )
        for variable in (KeyVariable.KEK, KeyVariable.DB)
    }
    variables = (
        plain("BootOrder", b"\x00\x00\x01\x00"),
        plain("Boot0000", b"\x01\x00\x00\x00" + "UEFI Windows Boot Manager".encode("utf-16-le") + bytes(90)),
        plain("Boot0001", b"\x01\x00\x00\x00" + "UEFI PXEv4".encode("utf-16-le") + bytes(60)),
        plain("Timeout", b"\x03\x00"),
        key(KeyVariable.PK, siglist.x509_list(OWNER, platform_key)),
        key(KeyVariable.KEK, *by_rule[KeyVariable.KEK]),
        key(KeyVariable.DB, *by_rule[KeyVariable.DB]),
    )
    return Store(2, 0, Ancillary(bytes(8), bytes(0x104)), variables).with_data({})


def with_boot_order(store: Store, order: bytes) -> Store:
    """The store after its guest changed BootOrder."""
    return _changed(store, ("BootOrder".encode("utf-16-le"), guid.EFI_GLOBAL_VARIABLE.bytes_le), lambda _: order)


def with_own_db_certificate(store: Store, certificate: bytes) -> Store:
    """The store after its guest added a certificate of its own to db."""
    return _changed(store, KeyVariable.DB.key, lambda data: data + siglist.x509_list(OWNER, certificate).build())


def _changed(store: Store, key: tuple[bytes, bytes], change: Callable[[bytes], bytes]) -> Store:
    return store.with_data({index: change(each.data) for index, each in enumerate(store.variables) if each.key == key})


@dataclass(frozen=True, slots=True)
class Host:
    """The demo's host: a folder with everything, and a daemon that runs in it."""

    folder: Path

    @property
    def control(self) -> Path:
        """The control socket."""
        return self.folder / "control.sock"

    @property
    def state_dir(self) -> Path:
        """The daemon's state folder."""
        return self.folder / "state"

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run a command of varstore-companion as a person would, with --json; return what it printed."""
        command = [sys.executable, "-m", "varstore_companion.cli", *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, check=False, text=True)  # noqa: S603  our own program
        try:
            printed: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise StepError(f"{' '.join(arguments)}: exit code {done.returncode}: {done.stderr or done.stdout}") from None
        return printed


@contextmanager
def daemon(host: Host) -> Iterator[None]:
    """Run `serve` as a process of its own; ready when this is entered, gone when it is left. Raises `StepError`."""
    log = host.folder / "daemon.log"
    command = [sys.executable, "-m", "varstore_companion.cli", "serve", "--control", str(host.control)]
    command += ["--config", os.devnull]  # not the settings of the host's own daemon
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--state-dir", str(host.state_dir)], stderr=output)  # noqa: S603  our own program
    try:
        _wait_until_ready(host.control, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(READY_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(control: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = monotonic() + READY_SECONDS
    while monotonic() < deadline and process.poll() is None:
        try:
            Client(control, ClientKind.OPERATOR).close()
        except ConnectError:
            sleep(0.02)
        else:
            return
    said = log.read_text(errors="replace").splitlines()[-1:]
    raise StepError(f"the daemon did not become ready: {' '.join(said)}")
