"""Detached PKCS#7 signatures as UEFI uses them: verifies one against trusted certificates, and makes one.

cryptography has no verification of SignedData, so a small DER walk is here (RFC 5652, section 5). As in varstored
validity dates are ignored and the trusted certificate need not be a root.
"""

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.utils import CryptographyDeprecationWarning

SEQUENCE, SET, INTEGER, OCTET_STRING, OID = 0x30, 0x31, 0x02, 0x04, 0x06
CONTEXT_0, CONTEXT_1 = 0xA0, 0xA1
OID_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")
OID_DATA = bytes.fromhex("2a864886f70d010701")
OID_SHA256 = bytes.fromhex("608648016503040201")
OID_CONTENT_TYPE = bytes.fromhex("2a864886f70d010903")
OID_MESSAGE_DIGEST = bytes.fromhex("2a864886f70d010904")
CHAIN_LIMIT = 8


class SignatureRefused(Exception):  # noqa: N818 - named after what happened, as the tests that expect it read
    """A signature that is malformed, of an algorithm that UEFI does not allow, untrusted or wrong."""


@dataclass(frozen=True, slots=True)
class Element:
    """One DER element: its tag, its content, and itself whole."""

    tag: int
    content: bytes
    whole: bytes

    def of(self, tag: int) -> "Element":
        if self.tag != tag:
            raise SignatureRefused(f"DER tag {self.tag:#04x} where {tag:#04x} was expected")
        return self

    def children(self, tag: int, *, at_least: int = 0) -> list["Element"]:
        """The elements inside this one of tag `tag`."""
        self.of(tag)
        found = []
        rest = self.content
        while rest:
            element = read_element(rest)
            found.append(element)
            rest = rest[len(element.whole) :]
        if len(found) < at_least:
            raise SignatureRefused(f"{len(found)} DER elements where {at_least} were expected")
        return found


def read_element(data: bytes) -> Element:
    """The DER element at the start of `data`; what follows it is not looked at."""
    if len(data) < 2:
        raise SignatureRefused("DER ends inside an element's header")
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        if not 1 <= length & 0x7F <= 4 or len(data) < start:
            raise SignatureRefused("DER length that is indefinite, too long or cut")
        length = int.from_bytes(data[2:start], "big")
    if len(data) < start + length:
        raise SignatureRefused(f"DER element of {length} bytes with {len(data) - start} left")
    return Element(data[0], data[start : start + length], data[: start + length])


def read_certificate(data: bytes) -> x509.Certificate:
    """The certificate at the start of `data`.

    As with OpenSSL's d2i_X509 bytes after it do not matter, nor a serial number that is not positive. Stricter than
    OpenSSL: the version must be 1 or 3.
    """
    der = read_element(data).of(SEQUENCE).whole
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            return x509.load_der_x509_certificate(der)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise SignatureRefused(f"not a certificate: {error}") from error


def public_rsa_key(certificate: x509.Certificate) -> rsa.RSAPublicKey:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureRefused(f"a key that cannot be read: {error}") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise SignatureRefused("a key that is not RSA")
    return key


@dataclass(frozen=True, slots=True)
class Signer:
    """One SignerInfo: who says to have signed, and the parts needed to believe it."""

    issuer_and_serial: bytes
    digest_algorithm: bytes
    attributes: Element | None
    signature: bytes


@dataclass(frozen=True, slots=True)
class SignedData:
    """A SignedData with its certificates and signers."""

    digest_algorithms: list[bytes]
    certificates: list[bytes]
    signers: list[Signer]

    @classmethod
    def read(cls, data: bytes) -> "SignedData":
        """Read a SignedData, bare as UEFI says or wrapped in a ContentInfo as varstored allows too."""
        parts = read_element(data).children(SEQUENCE, at_least=2)
        if parts[0].tag == OID:
            if parts[0].content != OID_SIGNED_DATA:
                raise SignatureRefused("a ContentInfo that is not SignedData")
            parts = parts[1].children(CONTEXT_0, at_least=1)[0].children(SEQUENCE)
        if len(parts) < 4:
            raise SignatureRefused("a SignedData without its four obligatory parts")
        content = parts[2].children(SEQUENCE, at_least=1)
        if len(content) != 1 or content[0].of(OID).content != OID_DATA:
            raise SignatureRefused("a SignedData whose content is not detached data")
        certificates = [part for part in parts[3:-1] if part.tag == CONTEXT_0]
        return cls(
            [algorithm.children(SEQUENCE, at_least=1)[0].of(OID).content for algorithm in parts[1].children(SET)],
            [each.whole for part in certificates for each in part.children(CONTEXT_0)],
            [_read_signer(each) for each in parts[-1].children(SET)],
        )

    def signer_certificates(self) -> list[x509.Certificate]:
        """The certificate of each signer, in the order of the signers."""
        by_name = {_issuer_and_serial(each): each for each in self.certificates}
        missing = [signer for signer in self.signers if signer.issuer_and_serial not in by_name]
        if missing or not self.signers:
            raise SignatureRefused("a signer whose certificate is not in the SignedData")
        return [read_certificate(by_name[signer.issuer_and_serial]) for signer in self.signers]


def _read_signer(element: Element) -> Signer:
    parts = element.children(SEQUENCE, at_least=5)
    attributes = parts[3] if parts[3].tag == CONTEXT_0 else None
    rest = parts[4:] if attributes else parts[3:]
    if len(rest) < 2:
        raise SignatureRefused("a SignerInfo without its signature")
    algorithm = parts[2].children(SEQUENCE, at_least=1)[0]
    return Signer(parts[1].of(SEQUENCE).content, algorithm.of(OID).content, attributes, rest[1].content)


def _issuer_and_serial(certificate: bytes) -> bytes:
    fields = read_element(certificate).children(SEQUENCE, at_least=3)[0].children(SEQUENCE, at_least=6)
    offset = 1 if fields[0].tag == CONTEXT_0 else 0
    return fields[offset + 2].whole + fields[offset].of(INTEGER).whole


def _signed_bytes(signer: Signer, content: bytes) -> bytes:
    """What the signature is over: the content, or the signed attributes once they match it (RFC 5652, 5.4)."""
    if signer.attributes is None:
        return content
    values = {}
    for attribute in signer.attributes.children(CONTEXT_0):
        oid, value = attribute.children(SEQUENCE, at_least=2)[:2]
        values[oid.of(OID).content] = value.children(SET, at_least=1)[0]
    digest = values.get(OID_MESSAGE_DIGEST)
    kind = values.get(OID_CONTENT_TYPE)
    if digest is None or kind is None or kind.of(OID).content != OID_DATA:
        raise SignatureRefused("signed attributes without message digest or content type")
    if digest.of(OCTET_STRING).content != hashlib.sha256(content).digest():
        raise SignatureRefused("the signed message digest is not the content's")
    return bytes([SET]) + signer.attributes.whole[1:]


def _leads_to(certificate: x509.Certificate, trusted: x509.Certificate, others: Sequence[x509.Certificate]) -> bool:
    """Whether a chain of at most CHAIN_LIMIT issuers leads from `certificate` to the trusted one."""
    reached, edge = {certificate}, [certificate]
    for _ in range(CHAIN_LIMIT):
        if trusted in reached or any(_issued(each, trusted) for each in edge):
            return True
        edge = [issuer for issuer in others if issuer not in reached and any(_issued(each, issuer) for each in edge)]
        reached.update(edge)
    return False


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def verify_signed_data(data: bytes, content: bytes, trusted: Iterable[x509.Certificate]) -> None:
    """Raise SignatureRefused unless each signer signed `content` with SHA-256 and RSA, and one and the same of the
    `trusted` certificates is, or issued through the certificates enclosed, the certificate of each.
    """
    signed = SignedData.read(data)
    if signed.digest_algorithms[:1] != [OID_SHA256]:
        raise SignatureRefused("a digest algorithm that is not SHA-256")
    signers = signed.signer_certificates()
    for signer, certificate in zip(signed.signers, signers, strict=True):
        if signer.digest_algorithm != OID_SHA256:
            raise SignatureRefused("a signer's digest algorithm that is not SHA-256")
        try:
            public_rsa_key(certificate).verify(
                signer.signature, _signed_bytes(signer, content), padding.PKCS1v15(), hashes.SHA256()
            )
        except InvalidSignature as error:
            raise SignatureRefused("the signature does not fit the content") from error
    enclosed = [read_certificate(each) for each in signed.certificates]
    if not any(all(_leads_to(each, anchor, enclosed) for each in signers) for anchor in trusted):
        raise SignatureRefused("no chain from the signer to a trusted certificate")


def sign_detached(
    content: bytes,
    key: rsa.RSAPrivateKey,
    certificate: x509.Certificate,
    chain: Sequence[x509.Certificate] = (),
    *,
    attributes: bool = False,
    wrapped: bool = False,
) -> bytes:
    """A detached SignedData over `content`, with or without signed attributes, bare or wrapped in a ContentInfo."""
    builder = pkcs7.PKCS7SignatureBuilder().set_data(content).add_signer(certificate, key, hashes.SHA256())
    for each in chain:
        builder = builder.add_certificate(each)
    options = [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary]
    if not attributes:
        options.append(pkcs7.PKCS7Options.NoAttributes)
    signed = builder.sign(Encoding.DER, options)
    return signed if wrapped else read_element(signed).children(SEQUENCE)[1].content
