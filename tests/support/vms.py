"""Small stores that varstored would load, and rules about them that are easy to see through."""

from uuid import UUID

from support.storebytes import Variable, make_store
from varstore_companion.trust.state import CertificatesState

OK, AVAILABLE, ON_BOOT = CertificatesState.OK, CertificatesState.UPDATE_AVAILABLE, CertificatesState.UPDATE_ON_BOOT

_GUID = UUID("c2b5e9a4-6a31-4a7e-9f6c-0d6a2f1b7c55")
_NEEDS = b"needs the update"


def old_store(number: int = 0, size: int = 100) -> bytes:
    """A store that needs the update."""
    return make_store([Variable("Keys", _GUID, _NEEDS), Variable("Number", _GUID, number.to_bytes(8, "little") * (size // 8))])


def new_store(number: int = 0, size: int = 100) -> bytes:
    """A store that is complete."""
    return make_store([Variable("Number", _GUID, number.to_bytes(8, "little") * (size // 8))])


def derive(store: bytes) -> CertificatesState:
    """What the rules say of these stores."""
    return AVAILABLE if _NEEDS in store else OK
