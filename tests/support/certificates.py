"""The certificates that tests put into stores: Microsoft's real ones, and throw-away identities of tenants.

Keys are made once a test run: nothing secret and nothing of Microsoft's is in the repository.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

FINGERPRINTS = {
    "ms-kek-2011": "a1117f516a32cefcba3f2d1ace10a87972fd6bbe8fe0d0b996e09e65d802a503",
    "ms-kek-2023": "3cd3f0309edae228767a976dd40d9f4affc4fbd5218f2e8cc3c9dd97e8ac6f9d",
    "windows-2011": "e8e95f0733a55e8bad7be0a1413ee23c51fcea64b3c8fa6a786935fddcc71961",
    "windows-2023": "076f1fea90ac29155ebf77c17682f75f1fdd1be196da302dc8461e350a9ae330",
    "ms-uefi-2011": "48e99b991f57fc52f76149599bff0a58c47154229b9f8d603ac40d3500248507",
    "ms-uefi-2023": "f6124e34125bee3fe6d79a574eaa7b91c0e7bd9d929c1a321178efd611dad901",
    "ms-uefi-rom-2023": "e5be3e64c6e66a281457ecdece0d6d0787577aad2a3a0144262c10c14ba8d8f1",
}
"""SHA-256 of the DER of each of Microsoft's certificates, by the name that virt-firmware gives it."""

_VALID_FROM = datetime(2020, 1, 1, tzinfo=UTC)
_VALID_TO = datetime(2021, 1, 1, tzinfo=UTC)
"""Long over, on purpose: varstored ignores validity dates, and so must everything that is tested with these."""


def microsoft_folder() -> Path | None:
    """Where virt-firmware keeps Microsoft's certificates; None where the package is not installed."""
    if find_spec("virt") is None:
        return None
    package = find_spec("virt.firmware")
    for place in (package.submodule_search_locations or ()) if package else ():
        folder = Path(place, "certs", "microsoft.com")
        if folder.is_dir():
            return folder
    return None


@cache
def microsoft(name: str) -> bytes:
    """The DER of one of Microsoft's certificates; the calling test is skipped where virt-firmware is absent."""
    folder = microsoft_folder()
    if folder is None:
        pytest.skip("Microsoft's certificates come from the package virt-firmware, which is not installed")
    pem = (folder / f"{name}.pem").read_bytes()
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    assert hashlib.sha256(der).hexdigest() == FINGERPRINTS[name], f"{name} is not the certificate of that name"
    return der


@dataclass(frozen=True, slots=True)
class Identity:
    """A key and its certificate."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


@cache
def _rsa_key(label: str) -> rsa.RSAPrivateKey:
    assert label
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _serial(common_name: str) -> int:
    """A serial number of eight bytes, the same in each run, so that names of one length give bodies of one length."""
    return int.from_bytes(hashlib.sha256(common_name.encode()).digest()[:8], "big") & (1 << 63) - 1 | 1 << 62


def _builder(common_name: str, issuer: x509.Name | None) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .serial_number(_serial(common_name))
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_TO)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )


@cache
def identity(common_name: str, *, issued_by: Identity | None = None, key_of: str | None = None) -> Identity:
    """An RSA identity, self-signed or issued by another; `key_of` shares the key of that name, to save making one."""
    key = _rsa_key(key_of or common_name)
    builder = _builder(common_name, issued_by.certificate.subject if issued_by else None).public_key(key.public_key())
    return Identity(key, builder.sign(issued_by.key if issued_by else key, hashes.SHA256()))


@cache
def elliptic_certificate() -> bytes:
    """The DER of a well-formed certificate whose key is not RSA, which varstored refuses in a signature list."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _builder("elliptic", None).public_key(key.public_key()).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _element(tag: int, content: bytes) -> bytes:
    """DER: a length of 128 or more has its own bytes, and no more of them than it needs."""
    length = len(content).to_bytes(max(1, (len(content).bit_length() + 7) // 8), "big")
    return bytes([tag]) + (length if len(content) < 128 else bytes([0x80 | len(length)]) + length) + content


def _integer(value: int) -> bytes:
    return _element(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def with_key(certificate: x509.Certificate, oid: str, parameters: bytes, key: bytes) -> bytes:
    """The DER of a certificate with another public key, which its signature is not for: varstored does not look at that."""
    tbs, old = certificate.tbs_certificate_bytes, certificate.public_key()
    algorithm = _element(0x30, bytes.fromhex(oid) + parameters)
    new = _element(0x30, algorithm + _element(3, b"\0" + key))
    signed = tbs.replace(old.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), new)
    assert signed != tbs
    der = certificate.public_bytes(Encoding.DER)
    return _element(0x30, _element(0x30, signed[4:]) + der[der.index(tbs) + len(tbs) :])


def diffie_hellman_certificate() -> bytes:
    """One whose key is prime numbers, as far as anybody has the patience to find out: 2 ** 9,941 - 1 is one."""
    parameters = _element(0x30, _integer((1 << 9_941) - 1) + _integer(2))
    return with_key(identity("Diffie-Hellman").certificate, "06092a864886f70d010301", parameters, _integer(2))


def pss_certificate() -> bytes:
    """One whose key is RSA's for one kind of signature alone, which OpenSSL and so varstored does not call RSA."""
    made = identity("RSASSA-PSS")
    key = made.key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
    return with_key(made.certificate, "06092a864886f70d01010a", b"", key)
