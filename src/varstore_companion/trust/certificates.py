"""Certificate bodies: which bytes may be added to a store, and what is wrong with those that stand in one."""

import warnings
from binascii import a2b_base64
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from varstore_companion.efi import authenticated, guid, siglist
from varstore_companion.errors import MalformedError
from varstore_companion.trust.manifest import Manifest

Bodies = Mapping[bytes, bytes]
"""Certificates as DER by their SHA-256."""

REMEMBERED = 32
"""Certificates whose problem is known without parsing them again: those of Microsoft that most stores hold, and some platform
keys. What guests make of it costs at most the largest variable for each, 1.8 MiB."""
_RSA = x509.ObjectIdentifier("1.2.840.113549.1.1.1")
_PEM_BEGIN = b"-----BEGIN CERTIFICATE-----"
_PEM_END = b"-----END CERTIFICATE-----"


@lru_cache(maxsize=REMEMBERED)
def problem(der: bytes) -> str | None:
    """Why varstored would not take these bytes as a certificate (handler.c: it must parse and its key be RSA), or None."""
    try:
        # The library warns about what it will refuse one day; a guest's certificate must not write to the log.
        with warnings.catch_warnings(action="ignore"):
            certificate = x509.load_der_x509_certificate(der)
            kind = certificate.public_key_algorithm_oid
            if kind != _RSA:
                # Not read: the library would look whether a Diffie-Hellman key's numbers are prime, for half a minute and with
                # every other thread held up.
                return f"has a key that is not RSA ({kind.dotted_string})"
            certificate.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        return f"is not a readable X.509 certificate ({str(error)[:100]})"
    return None


def from_file(data: bytes) -> Iterator[bytes]:
    """The DER certificates in a file of one of the kinds that hosts have, told apart by their content.

    PEM (any number), one DER certificate, or a signed update (varstored's `.auth`, Microsoft's `.bin`). Raises
    `MalformedError` for anything else.
    """
    if _PEM_BEGIN in data:
        # Whole before the first is handed out: the filter of warnings is the process's, not this generator's.
        with warnings.catch_warnings(action="ignore"):
            found = list(_from_pem(data))
        yield from found
    elif data[:2] == b"\x30\x82":
        yield data
    else:
        update = authenticated.parse(data)
        offset = len(data) - len(update.payload)
        try:
            lists = siglist.parse(update.payload)
        except MalformedError as error:
            raise error.within("payload", offset) from None
        for signature_list in lists:
            if signature_list.type == guid.EFI_CERT_X509:
                yield from (signature.data for signature in signature_list.signatures)


def _from_pem(data: bytes) -> Iterator[bytes]:
    """The DER certificates in PEM text (RFC 7468). Raises `MalformedError`."""
    # By hand: the library's own way back to DER loads its module for private keys, 0.4 MiB that the daemon would keep.
    begin = data.find(_PEM_BEGIN)
    while begin >= 0:
        end = data.find(_PEM_END, begin)
        if end < 0:
            raise MalformedError("PEM", offset=begin, expected=_PEM_END.decode())
        try:
            der = a2b_base64(b"".join(data[begin + len(_PEM_BEGIN) : end].split()), strict_mode=True)
            x509.load_der_x509_certificate(der)
        except (ValueError, x509.InvalidVersion) as error:
            raise MalformedError("PEM", offset=begin, expected=f"certificates ({error})") from None
        yield der
        begin = data.find(_PEM_BEGIN, end)


def accept(candidates: Iterable[bytes], manifest: Manifest) -> dict[bytes, bytes]:
    """Keep what an update may add: the manifest requires its SHA-256, and varstored would take it."""
    required = {certificate.sha256 for rule in manifest.rules for certificate in rule.required}
    by_digest = {sha256(candidate).digest(): candidate for candidate in candidates}
    return {digest: der for digest, der in by_digest.items() if digest in required and problem(der) is None}
