"""A store, signature lists, a signed update and a file of certificates: what a guest or a host's folder chooses."""

from collections.abc import Iterator

from cryptography.hazmat.primitives.serialization import Encoding

from fuzz.contract import Target
from fuzz.scenes import signature_lists, stores
from support import storebytes as sb
from support.certificates import elliptic_certificate, identity
from support.siglist_rules import ListRefused
from support.siglist_rules import walk as walk_by_the_rules
from support.varstored_model import LoadRefused, SetRefused, Update, VarstoredModel, sign_update
from varstore_companion.efi import authenticated, siglist
from varstore_companion.efi import store as stores_of
from varstore_companion.efi.outline import admit, outline
from varstore_companion.efi.siglist_outline import violations, walk
from varstore_companion.errors import MalformedError, OverLimitError
from varstore_companion.trust import certificates


def within(error: MalformedError, data: bytes) -> tuple[str, int, str]:
    """The error's parts, its offset inside the input."""
    assert 0 <= error.offset <= len(data), error
    assert error.what
    assert error.expected
    return error.what, error.offset, error.expected


def store(data: bytes) -> None:
    """Invariant 1; and what is admitted is what varstored loads, as its model in the tests tells it."""
    refusal = None
    try:
        parsed = stores_of.parse(data)
    except MalformedError as error:
        refusal = within(error, data)
    else:
        assert parsed.build() == data
        found = outline(data)
        assert [(each.name, each.guid.bytes_le) for each in parsed.variables] == [found.key(place) for place in found.places]
    try:
        VarstoredModel.load(data)
        loads = True
    except LoadRefused:
        loads = False
    try:
        admitted = admit(data)
    except MalformedError as error:
        assert within(error, data) == refusal
        assert not loads
    except OverLimitError:
        assert refusal is None
        assert not loads
    else:
        assert refusal is None
        assert loads
        assert admitted == outline(data)


def signatures(data: bytes) -> None:
    """Invariant 1; the values and their outline agree; and no rule is broken exactly when the tests' own walk finds none."""
    refusal = None
    try:
        lists = siglist.parse(data)
    except MalformedError as error:
        refusal = within(error, data)
    try:
        places = walk(data)
    except MalformedError as error:
        assert within(error, data) == refusal
        well_formed = False
    else:
        assert refusal is None
        assert siglist.build(lists) == data
        at = 0
        for place, one in zip(places, lists, strict=True):
            assert (place.start, place.type, place.signature_size) == (at, one.type.bytes_le, one.signature_size)
            assert data[place.start : place.end] == one.build()
            assert list(place.entries(data)) == [each.owner.bytes_le + each.data for each in one.signatures]
            at = place.end
        assert at == len(data)
        well_formed = not violations(places)
        count = sum(len(one.signatures) for one in lists)
        assert (not violations(places, platform_key=True)) == (well_formed and count == 1)
    try:
        ruled = [(each.kind, each.entries) for each in walk_by_the_rules(data)]
    except ListRefused:
        assert not well_formed
    else:
        assert well_formed
        assert ruled == [(one.type, tuple(each.owner.bytes_le + each.data for each in one.signatures)) for one in lists]


def update(data: bytes) -> None:
    """Invariant 1; what is read is what varstored reads, as its model in the tests tells it."""
    try:
        parsed = authenticated.parse(data)
    except MalformedError as error:
        within(error, data)
        return
    assert parsed.build() == data
    assert str(parsed.timestamp)
    try:
        model = Update.read(data)
    except SetRefused as refused:
        # varstored takes no time zone and no nanoseconds, which are not looked at here.
        assert "EFI_TIME" in refused.reason
        return
    assert (model.time, model.signature, model.payload) == (parsed.timestamp.raw, parsed.signature, parsed.payload)


def certificate_file(data: bytes) -> None:
    """Every candidate in a file of a host's is judged, whatever it is."""
    try:
        found = list(certificates.from_file(data))
    except MalformedError as error:
        within(error, data)
        return
    for der in found:
        problem = certificates.problem(der)
        assert problem is None or 0 < len(problem) < 400


def _updates() -> Iterator[bytes]:
    who = identity("A fuzzed signer", key_of="fuzz")
    payloads = (b"", sb.sha256_list([bytes(32)]), sb.x509_list(who.der, sb.OWNER_TENANT))
    for payload in payloads:
        signed = sign_update("db", sb.IMAGE_SECURITY, 0x67, sb.efi_time(2024, 5, 6), payload, key=who.key, cert=who.certificate)
        yield signed
        yield signed[:40] + payload


def _certificate_files() -> Iterator[bytes]:
    who = identity("A fuzzed signer", key_of="fuzz")
    yield who.der
    yield elliptic_certificate()
    yield who.certificate.public_bytes(Encoding.PEM)
    yield who.certificate.public_bytes(Encoding.PEM) * 2
    yield from _updates()


TARGETS = (
    Target("store", store, stores, calls_per_byte=6),
    Target("siglist", signatures, signature_lists, calls_per_byte=6),
    Target("authenticated", update, _updates, limit=2_048),
    Target("certificate", certificate_file, _certificate_files, limit=2_560),
)
