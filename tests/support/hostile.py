"""Stores that are cut, lie or are malformed, each with what is wrong: what a broken host or a hostile guest leaves.

Made without Microsoft's certificates, so that they are there everywhere.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from uuid import UUID

from support import storebytes as sb
from support.certificates import elliptic_certificate, identity
from support.storebytes import Variable, db_variable, make_store, pk_variable, sha256_list, signature_list, x509_list

PLAIN = Variable("BootOrder", sb.GLOBAL, bytes(6))
LAST = Variable("Timeout", sb.GLOBAL, bytes(2))
TOO_MUCH = 1 << 63
EVERYTHING = (1 << 64) - 1
VENDOR = UUID("9d0da369-540b-46f8-85a0-2b5f2c301e15")


@dataclass(frozen=True, slots=True)
class Hostile:
    """A store with something wrong.

    `loads`: varstored takes it all the same, as the fault is inside a variable. `bad_list`: the fault is in the
    signature lists of PK or db, and SetVariable would not have taken them.
    """

    name: str
    blob: bytes
    wrong: str
    loads: bool
    bad_list: bool


Recipe = Callable[[], bytes]
_recipes: dict[str, tuple[str, bool, bool, Recipe]] = {}


def _register(wrong: str, *, loads: bool, bad_list: bool = False) -> Callable[[Recipe], Recipe]:
    def add(recipe: Recipe) -> Recipe:
        _recipes[recipe.__name__.strip("_")] = (wrong, loads, bad_list, recipe)
        return recipe

    return add


def _refused(wrong: str) -> Callable[[Recipe], Recipe]:
    return _register(wrong, loads=False)


def _loads(wrong: str) -> Callable[[Recipe], Recipe]:
    return _register(wrong, loads=True)


def _bad_list(wrong: str) -> Callable[[Recipe], Recipe]:
    return _register(wrong, loads=True, bad_list=True)


@cache
def hostile(name: str) -> Hostile:
    """The hostile store of that name."""
    wrong, loads, bad_list, recipe = _recipes[name]
    return Hostile(name, recipe(), wrong, loads, bad_list)


def cuts(blob: bytes) -> Iterator[bytes]:
    """`blob` cut at every byte: none of these is a store that varstored takes."""
    for end in range(len(blob)):
        yield blob[:end]


def _with_db(data: bytes) -> bytes:
    return make_store([PLAIN, db_variable(data), LAST])


def _hashes(*, list_size: int | None = None, header_size: int | None = None, signature_size: int | None = None) -> bytes:
    return signature_list(
        sb.CERT_SHA256,
        [(sb.OWNER_TENANT, bytes([number]) * 32) for number in range(2)],
        list_size=list_size,
        header_size=header_size,
        signature_size=signature_size,
    )


@_refused("no bytes at all")
def _nothing() -> bytes:
    return b""


@_refused("a magic of other letters")
def _magic() -> bytes:
    return b"SRAV" + make_store([PLAIN])[4:]


@_refused("ends inside the header")
def _cut_in_header() -> bytes:
    return make_store([])[:20]


@_refused("ends inside the ancillary block")
def _cut_in_ancillary() -> bytes:
    return make_store([])[:-1]


@_refused("ends inside a variable's name")
def _cut_in_name() -> bytes:
    return make_store([PLAIN, PLAIN.encode()[:12]])


@_refused("ends inside a variable's data")
def _cut_in_data() -> bytes:
    return make_store([PLAIN, PLAIN.encode()[: 8 + 18 + 8 + 3]])


@_refused("ends inside a variable's digest")
def _cut_in_digest() -> bytes:
    return make_store([PLAIN, PLAIN.encode()[:-1]])


@_refused("a name length of 2**63")
def _name_length_huge() -> bytes:
    return make_store([PLAIN.encode(name_length=TOO_MUCH)])


@_refused("a data length of 2**64 - 1")
def _data_length_huge() -> bytes:
    return make_store([PLAIN.encode(data_length=EVERYTHING)])


@_refused("a name length that reaches into the next variable and beyond the end")
def _name_length_beyond() -> bytes:
    return make_store([PLAIN, PLAIN.encode(name_length=200)])


@_refused("a name of no bytes")
def _name_empty() -> bytes:
    return make_store([PLAIN, Variable("", sb.GLOBAL, b"data")])


@_refused("data of no bytes")
def _data_empty() -> bytes:
    return make_store([PLAIN, Variable("Timeout", sb.GLOBAL, b"")])


@_refused("a name of 4,098 bytes")
def _name_over_limit() -> bytes:
    return make_store([Variable("N" * 2049, sb.GLOBAL, b"data")])


@_refused("data of 57,345 bytes")
def _data_over_limit() -> bytes:
    return make_store([Variable("Big", sb.GLOBAL, bytes(sb.DATA_LIMIT + 1))])


@_refused("one byte more than TOTAL_LIMIT")
def _total_over_limit() -> bytes:
    small = [Variable(f"V{number:03}", sb.GLOBAL, bytes(2)) for number in range(900)]
    left = sb.TOTAL_LIMIT + 1 - sum(each.counted for each in small)
    return make_store([*small, Variable("Last", sb.GLOBAL, bytes(left - 8 - sb.OVERHEAD_COUNTED))])


@_refused("within TOTAL_LIMIT, but a file of more than 131,072 bytes")
def _file_over_limit() -> bytes:
    big = [Variable(f"Big{number}", sb.GLOBAL, bytes(sb.DATA_LIMIT)) for number in range(2)]
    left = sb.TOTAL_LIMIT - sum(each.counted for each in big)
    return make_store([*big, Variable("Last", sb.GLOBAL, bytes(left - 8 - sb.OVERHEAD_COUNTED))])


@_refused("a count of 2**64 - 1")
def _count_huge() -> bytes:
    return make_store([PLAIN], count=EVERYTHING)


@_refused("a count of 1,025, and as many variables")
def _count_over_limit() -> bytes:
    return make_store([Variable(bytes([number >> 8, number & 255]), sb.GLOBAL, b"x") for number in range(1025)])


@_refused("one variable fewer than the count")
def _count_too_big() -> bytes:
    return make_store([PLAIN], count=2)


@_refused("one variable more than the count")
def _count_too_small() -> bytes:
    return make_store([PLAIN, PLAIN], count=1)


@_refused("a byte after the last variable")
def _trailing_byte() -> bytes:
    return make_store([PLAIN]) + b"\0"


@_refused("a version of 2**32 - 1")
def _version_huge() -> bytes:
    return make_store([PLAIN], (1 << 32) - 1)


@_refused("says version 1, has the ancillary block of version 2")
def _version_mixed() -> bytes:
    return make_store([PLAIN], 1, bytes(sb.ANCILLARY_SIZE))


@_bad_list("SignatureSize 0")
def _signature_size_zero() -> bytes:
    return _with_db(_hashes(signature_size=0))


@_bad_list("SignatureSize 15, less than an owner")
def _signature_size_below_owner() -> bytes:
    return _with_db(signature_list(sb.CERT_X509, [(sb.OWNER_TENANT, bytes(14))], signature_size=15))


@_bad_list("SignatureSize larger than the list")
def _signature_size_huge() -> bytes:
    return _with_db(signature_list(sb.CERT_X509, [(sb.OWNER_TENANT, bytes(14))], signature_size=0xFFFFFFFF))


@_bad_list("SignatureListSize 0")
def _list_size_zero() -> bytes:
    return _with_db(_hashes(list_size=0))


@_bad_list("SignatureListSize 27, less than its own header")
def _list_size_below_header() -> bytes:
    return _with_db(_hashes(list_size=27))


@_bad_list("SignatureListSize 2**32 - 1")
def _list_size_huge() -> bytes:
    return _with_db(_hashes(list_size=0xFFFFFFFF))


@_bad_list("a list one byte longer than the variable")
def _list_size_beyond() -> bytes:
    return _with_db(_hashes(list_size=28 + 2 * 48 + 1))


@_bad_list("entries that are no multiple of SignatureSize")
def _list_not_multiple() -> bytes:
    return _with_db(_hashes(list_size=28 + 2 * 48 - 8)[: 28 + 2 * 48 - 8])


@_bad_list("a list without entries")
def _list_empty() -> bytes:
    return _with_db(signature_list(sb.CERT_SHA256, [], signature_size=48))


@_bad_list("SignatureHeaderSize 8")
def _header_size() -> bytes:
    return _with_db(signature_list(sb.CERT_SHA256, [(sb.OWNER_TENANT, bytes(32))], header=bytes(8)))


@_bad_list("SignatureHeaderSize 2**32 - 1")
def _header_size_huge() -> bytes:
    return _with_db(_hashes(header_size=0xFFFFFFFF))


@_bad_list("a good list, then ten bytes that are no list")
def _list_cut() -> bytes:
    return _with_db(_hashes() + bytes(10))


@_bad_list("a good list, then a malformed one, then a good one")
def _list_malformed_in_between() -> bytes:
    return _with_db(_hashes() + _hashes(signature_size=0) + _hashes())


@_bad_list("a list of a type that no one knows")
def _list_type_unknown() -> bytes:
    return _with_db(signature_list(VENDOR, [(sb.OWNER_TENANT, bytes(32))]))


@_bad_list("a hash of a wrong length")
def _hash_too_short() -> bytes:
    return _with_db(sha256_list([bytes(31)], sb.OWNER_TENANT))


@_bad_list("a certificate that is none")
def _not_a_certificate() -> bytes:
    return _with_db(x509_list(b"this is no certificate", sb.OWNER_TENANT))


@_bad_list("a certificate cut short")
def _certificate_cut() -> bytes:
    return _with_db(x509_list(identity("A tenant's db").der[:-1], sb.OWNER_TENANT))


@_bad_list("a certificate of the X.509 version 4, for which cryptography has an exception of its own")
def _certificate_version() -> bytes:
    der = identity("A tenant's db").der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020103"), 1)
    return _with_db(x509_list(der, sb.OWNER_TENANT))


@_bad_list("a certificate with an elliptic curve key")
def _certificate_elliptic() -> bytes:
    return _with_db(x509_list(elliptic_certificate(), sb.OWNER_TENANT))


@_bad_list("two entries in PK")
def _pk_twice() -> bytes:
    return make_store([pk_variable(2 * x509_list(identity("A tenant's platform key").der, sb.OWNER_TENANT))])


@_loads("a certificate with a negative serial number, of which cryptography warns and OpenSSL says nothing")
def _certificate_serial_negative() -> bytes:
    der = bytearray(identity("A tenant's db").der)
    der[der.index(bytes.fromhex("a0030201020208")) + 7] |= 0x80
    return _with_db(x509_list(bytes(der), sb.OWNER_TENANT))


@_loads("a certificate with a byte after it, which OpenSSL does not look at")
def _certificate_padded() -> bytes:
    return _with_db(x509_list(identity("A tenant's db").der + b"\0", sb.OWNER_TENANT))


@_loads("two variables db of the same vendor")
def _db_twice() -> bytes:
    first = db_variable(x509_list(identity("A tenant's db").der, sb.OWNER_TENANT))
    return make_store([first, PLAIN, db_variable(_hashes())])


@_loads("two variables BootOrder of the same vendor")
def _plain_twice() -> bytes:
    return make_store([PLAIN, LAST, PLAIN])


@_loads("a name of an odd number of bytes")
def _name_odd() -> bytes:
    return make_store([PLAIN, Variable(b"odd", sb.GLOBAL, b"data")])


@_loads("a name with half a surrogate pair")
def _name_surrogate() -> bytes:
    return make_store([PLAIN, Variable(b"\x3d\xd8d\0", sb.GLOBAL, b"data")])


@_loads("a name with its terminator, which looks like db")
def _name_terminated() -> bytes:
    return make_store([PLAIN, Variable("db\0", sb.IMAGE_SECURITY, _hashes())])


@_loads("an EFI_TIME and attributes of all ones")
def _fields_all_ones() -> bytes:
    variable = Variable("db", sb.IMAGE_SECURITY, _hashes(), 0xFFFFFFFF, b"\xff" * 16, b"\xff" * 32)
    return make_store([variable])


@_loads("a recorded data length of 2**64 - 1, which nobody may believe")
def _recorded_length_huge() -> bytes:
    return make_store([PLAIN], data_length=EVERYTHING)


@_bad_list("many lists, each of one entry, and a malformed one at the end")
def _many_lists() -> bytes:
    single = sha256_list([bytes(32)], sb.OWNER_TENANT)
    return _with_db(single * (sb.DATA_LIMIT // len(single) - 1) + struct.pack("<16s3I", bytes(16), 28, 0, 0))


HOSTILE = tuple(_recipes)
"""The names of all hostile stores."""

LOADING = tuple(name for name, (_, loads, _, _) in _recipes.items() if loads)
"""Those that varstored loads all the same."""
